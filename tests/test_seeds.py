"""Named seeds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cellgan.seeds import derive_seed


def test_seed_is_the_same_in_every_version_and_process() -> None:
    assert derive_seed(0, "split") == 1548581963
    assert derive_seed(1, "shuffle", 3) == 1002215187


@given(st.integers(), st.lists(st.text()))
def test_seed_is_never_zero(root: int, names: list[str]) -> None:
    assert 1 <= derive_seed(root, *names) < 2**31


def test_names_have_seeds_of_their_own() -> None:
    names = [("noise",), ("noise", 1), ("noise", 2), ("labels",), ("labels", 1)]

    assert len({derive_seed(0, *name) for name in names}) == len(names)
