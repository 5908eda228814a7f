"""Which cells a user asks for, and where they go: checked before a model is loaded.

``--cells_no`` and ``--save_path`` are read here, without TensorFlow or AnnData, so a
slip in either is answered at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.errors import ConfigError, DataError, did_you_mean

LIKE_DATA = "like-data"
MULTIMODAL = ".h5mu"
OUTPUT_FORMATS = {
    ".h5ad": "AnnData in one HDF5 file",
    MULTIMODAL: "MuData in one HDF5 file, for RNA and ATAC",
    ".zarr": "AnnData in a Zarr folder",
    ".mtx": "folder of matrix.mtx.gz, barcodes.tsv.gz and features.tsv.gz, as 10x",
}
"""Suffix of a save path -> what is written there."""

Number = int | np.integer[Any]
CellsRequest = str | Number | Sequence[str | Number] | Mapping[str, Number]


def parse_cells_no(
    request: CellsRequest,
    manifest: DatasetManifest,
    *,
    is_conditional: bool,
    where: str = "--cells_no",
) -> tuple[int, ...]:
    """Read how many cells of each label are wanted.

    Parameters
    ----------
    request
        One of:

        - numbers, one per label in the vocabulary's order; 0 makes none
        - ``"like-data"``: as many of each label as were trained on
        - ``LABEL=N`` strings, or numbers by label; labels not named get none

        Numbers may be integers or their text, as on the command line.
    manifest
        The data set the model was trained on.
    is_conditional
        Whether the model makes cells of a chosen label. One that does not gets the sum
        of the numbers, and refuses labels.
    where
        Option or key, for messages.

    Returns
    -------
    Number of cells per label, in code order; of an unconditional model, one number.
    The numbers are a valid request themselves.

    Raises
    ------
    ConfigError
        If the request is none of the above, names an unknown label, has the wrong
        number of numbers, asks for no cell at all, or for cells of a label that the
        training cells do not have.
    """
    trained = manifest.cells_per_category["train"][manifest.label]
    if isinstance(request, Mapping):
        by_label = {str(k): _number(request[k], manifest, where) for k in request}
        numbers = _by_label(by_label, manifest, where, is_conditional=is_conditional)
    else:
        words = _words(request)
        if words and all(isinstance(word, str) and "=" in word for word in words):
            pairs = _pairs([str(word) for word in words], manifest, where)
            numbers = _by_label(pairs, manifest, where, is_conditional=is_conditional)
        elif len(words) == 1 and words[0] == LIKE_DATA:
            numbers = trained
        else:
            numbers = tuple(_number(word, manifest, where) for word in words)
    if sum(numbers) == 0:
        msg = f"{where}: no cells at all. Ask for one or more."
        raise ConfigError(msg)
    if not is_conditional:
        return (sum(numbers),)
    _check_numbers(numbers, trained, manifest, where)
    return numbers


def check_save_path(
    path: str | Path,
    where: str = "--save_path",
    *,
    modalities: Collection[str] = (RNA,),
    suffix: str = "",
    reason: str = "",
) -> Path:
    """Refuse a path that names no known format or would overwrite something else.

    Parameters
    ----------
    modalities
        What is to be written.
    suffix
        The only one that will do; empty for all that suit the modalities.
    reason
        Why so, in a sentence, for the message.

    Raises
    ------
    ConfigError
        If the suffix is not in `OUTPUT_FORMATS`, not for these modalities or not the
        one that is wanted, if a file would replace a folder, or if a folder would
        replace anything but a folder of the same format.
    """
    path = Path(path)
    if path.suffix in OUTPUT_FORMATS and (
        (path.suffix == MULTIMODAL) != (len(modalities) > 1)
    ):
        needed = (
            f"End the path in {MULTIMODAL}."
            if len(modalities) > 1
            else f"{MULTIMODAL} is for RNA and ATAC: end the path in .h5ad."
        )
        msg = f"{where}: {path}: the cells are {' and '.join(modalities)}. {needed}"
        raise ConfigError(msg)
    if path.suffix not in OUTPUT_FORMATS:
        formats = "".join(f"\n    {s:6} {what}" for s, what in OUTPUT_FORMATS.items())
        found = f'the suffix is "{path.suffix}"' if path.suffix else "it has no suffix"
        msg = f"{where}: {path}: {found}. End the path in one of:{formats}"
        raise ConfigError(msg)
    marker = {".zarr": "zarr.json", ".mtx": "matrix.mtx.gz"}.get(path.suffix)
    is_ours = path.is_file() if marker is None else (path / marker).is_file()
    is_empty = marker is not None and path.is_dir() and not any(path.iterdir())
    if path.exists() and not (is_ours or is_empty):
        msg = (
            f"{where}: {path} exists and holds something else. Choose another path, or "
            f"remove it first."
        )
        raise ConfigError(msg)
    if suffix and path.suffix != suffix:
        msg = f"{where}: {path}: {reason}"
        raise ConfigError(msg)
    return path


def check_library_sizes(
    numbers: Sequence[int], manifest: DatasetManifest, where: str = "--counts"
) -> None:
    """Refuse integer counts where the library sizes to draw from are unknown.

    Parameters
    ----------
    numbers
        As `parse_cells_no` returns them.

    Raises
    ------
    ConfigError
        If a wanted label has no library sizes.
    """
    sizes = manifest.library_sizes.get(RNA, ())
    trained = manifest.cells_per_category["train"][manifest.label]
    wanted = numbers if len(numbers) == len(trained) else trained
    known = [bool(table) for table in sizes] or [False] * len(wanted)
    if not all(has for has, number in zip(known, wanted, strict=True) if number):
        msg = (
            f"{where}: the library sizes of the training cells are unknown: their "
            f"records hold normalised values. Leave {where} out, or process and train "
            f'again with input_ds.record_values "counts".'
        )
        raise ConfigError(msg)


def _words(request: str | Number | Sequence[str | Number]) -> list[str | Number]:
    if isinstance(request, str | int | np.integer):
        return [request]
    return list(request)


def _number(word: str | Number, manifest: DatasetManifest, where: str) -> int:
    is_whole = isinstance(word, int | np.integer)
    if not is_whole and not re.fullmatch(r"-?[0-9]+", str(word)):
        msg = (
            f"{where}: {word!r} is no whole number."
            f"{did_you_mean(str(word), [LIKE_DATA])}\n"
            f'    Give one number per value of "{manifest.label}", or LABEL=N pairs '
            f"(in quotes where a label has spaces), or {LIKE_DATA}."
        )
        raise ConfigError(msg)
    number = int(word)
    if number < 0:
        msg = f"{where}: {number} cells cannot be made. Give 0 or more."
        raise ConfigError(msg)
    return number


def _pairs(
    words: Sequence[str], manifest: DatasetManifest, where: str
) -> dict[str, int]:
    pairs: dict[str, int] = {}
    for word in words:
        label, _, number = word.rpartition("=")
        if label in pairs:
            msg = f'{where}: "{label}" is given twice. Name every label once.'
            raise ConfigError(msg)
        pairs[label] = _number(number, manifest, where)
    return pairs


def _by_label(
    pairs: Mapping[str, int],
    manifest: DatasetManifest,
    where: str,
    *,
    is_conditional: bool,
) -> tuple[int, ...]:
    if not is_conditional:
        msg = (
            f"{where}: this model is not conditioned on a label, so cells of "
            f'"{next(iter(pairs), "")}" cannot be asked for. Give one number.'
        )
        raise ConfigError(msg)
    numbers = [0] * len(manifest.label_vocabulary)
    try:
        codes = manifest.label_vocabulary.encode(list(pairs))
    except DataError as error:
        msg = f"{where}: {error}"
        raise ConfigError(msg) from None
    for code, number in zip(codes, pairs.values(), strict=True):
        numbers[code] = number
    return tuple(numbers)


def _check_numbers(
    numbers: Sequence[int],
    trained: Sequence[int],
    manifest: DatasetManifest,
    where: str,
) -> None:
    categories = manifest.label_vocabulary.categories
    if len(numbers) != len(categories):
        given = " ".join(map(str, numbers))
        plural = "s" if len(numbers) > 1 else ""
        msg = (
            f"{where}: {len(numbers)} number{plural} ({given}) for {len(categories)} "
            f'values of "{manifest.label}": {", ".join(categories)}.\n'
            f"    Give one number per value, in this order; 0 makes none."
        )
        raise ConfigError(msg)
    for category, number, n_trained in zip(categories, numbers, trained, strict=True):
        if number and not n_trained:
            msg = (
                f'{where}: {number} cells of "{category}", which no training cell is: '
                f"the model has not seen it. Ask for 0 of it."
            )
            raise ConfigError(msg)
