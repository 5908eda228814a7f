"""From a raw file to the folder that models are trained from.

`process` is the only entry. It reads counts of any common format, filters cells and
genes, labels cells by clustering or by a column of theirs, splits them into train,
valid and test, and writes ``processed.h5ad`` (``.h5mu`` with ATAC counts), the records
and the manifest.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cellgan.config.input import BUILTIN_PREFIX
from cellgan.errors import ConfigError, DataError
from preprocessing.readers.raw_formats import raw_format

if TYPE_CHECKING:
    from cellgan.experiment import Experiment
    from preprocessing.experiment_folder import ProcessingSummary

__all__ = ["process"]

log = logging.getLogger(__name__)


def process(
    experiment: Experiment, *, overwrite: bool = False
) -> ProcessingSummary | None:
    """Make the folder of an experiment from its raw file, or from chunks.

    Parameters
    ----------
    experiment
        Its folder is made, complete or not at all; the raw file is only read.
    overwrite
        Replace the folder of an experiment, with all that was trained in it.

    Returns
    -------
    What was done; None if the folder was made before with the same parameters.

    Raises
    ------
    ConfigError
        If the folder was made with other parameters, a parameter does not fit the
        data, or the experiments folder cannot be written.
    DataError
        If the raw file cannot be used, nothing of it is left by the filters, or
        something else than an experiment is in the folder's place.
    """
    folder = experiment.folder
    if folder.exists() and not _is_free(experiment):
        if not overwrite:
            _check_unchanged(experiment)
            experiment.manifest()  # one that cannot be read is told, not kept silently
            log.info("%s: already processed, %s", experiment.name, folder)
            return None
        log.info("%s: replacing %s", experiment.name, folder)
    _check_place(experiment)
    for key, raw_input in _raw_inputs(experiment).items():
        if not _is_pattern(experiment, raw_input):
            raw_format(raw_input, key)
    # Loads AnnData, which what was answered above does not need.
    from preprocessing.pipeline import process_cells  # noqa: PLC0415

    return process_cells(experiment)


def _is_free(experiment: Experiment) -> bool:
    """Whether the folder is empty; refuses one that is not an experiment's."""
    folder = experiment.folder
    is_experiment = experiment.parameters_file.is_file() and (
        experiment.manifest_file.exists() or experiment.records_folder.is_dir()
    )
    if is_experiment:
        return False
    if folder.is_dir() and not any(folder.iterdir()):
        return True
    msg = (
        f"{folder}: exists and is not the folder of an experiment, so it is left as it "
        f"is. Give the experiment another name, or move what is there."
    )
    raise DataError(msg)


def _check_place(experiment: Experiment) -> None:
    """Refuse a folder that cannot be made, or that holds the raw file."""
    folder = experiment.folder.absolute()
    existing = next(parent for parent in folder.parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "not writable" if existing.is_dir() else "not a folder"
        msg = f"exp_param.experiments_dir: {existing} is {reason}; choose another one."
        raise ConfigError(msg)
    for raw_input in _raw_inputs(experiment).values():
        raw = Path(raw_input).expanduser().resolve()
        is_file = not raw_input.startswith(BUILTIN_PREFIX)
        if is_file and raw.is_relative_to(folder.resolve()):
            msg = (
                f"{raw_input}: the raw file lies in the folder to be written, "
                f"{folder}. Move it elsewhere first."
            )
            raise DataError(msg)


def _raw_inputs(experiment: Experiment) -> dict[str, str]:
    """Return the raw files by the parameters that name them."""
    parameters = experiment.parameters.input_ds
    files = {"input_ds.raw_input": parameters.raw_input}
    if parameters.atac is not None and parameters.atac.raw_input is not None:
        files["input_ds.atac.raw_input"] = parameters.atac.raw_input
    return files


def _is_pattern(experiment: Experiment, raw_input: str) -> bool:
    """Whether a parameter names chunks, which are looked for when they are opened."""
    parameters = experiment.parameters.input_ds
    is_chunks = raw_input == parameters.raw_input or raw_input.lower().endswith(".npz")
    return parameters.chunks is not None and is_chunks


def _check_unchanged(experiment: Experiment) -> None:
    try:
        experiment.check_frozen("input_ds")
    except ConfigError as error:
        msg = (
            f"{error}\n    Or add --overwrite, which replaces the folder and all that "
            f"was trained in it."
        )
        raise ConfigError(msg) from None
