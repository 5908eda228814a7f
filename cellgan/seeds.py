"""One root seed, one name for every use of randomness.

No module draws randomness without a seed argument, and no two uses share a seed:
``derive_seed(root, "split")`` and ``derive_seed(root, "noise")`` are unrelated.
"""

from __future__ import annotations

import hashlib


def derive_seed(root: int, *names: str | int) -> int:
    """Derive the seed of one named use of randomness from the root seed.

    Parameters
    ----------
    root
        Root seed of the experiment or of the request, any integer.
    names
        What the seed is for, for example ``"shuffle", epoch``.

    Returns
    -------
    An integer from 1 to 2**31 - 1. Never 0: a tensor-valued ``shuffle(seed=...)``
    fails when the global seed is 0.
    """
    text = "/".join([str(root), *map(str, names)])
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % (2**31 - 1) + 1
