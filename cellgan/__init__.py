"""cellgan: generative models of single-cell data behind one driver.

Importing the package loads neither TensorFlow nor AnnData; `load` does, when called.

Examples
--------
>>> import cellgan
>>> model = cellgan.load("experiments/pbmc")           # doctest: +SKIP
>>> cells = model.generate("like-data", seed=1)        # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cellgan.generation.trained_model import TrainedModel

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(folder: str | Path, *, step: int | None = None) -> TrainedModel:
    """Load the trained model of one experiment folder.

    Parameters
    ----------
    folder
        Experiment folder, as made by ``--process`` and ``--train``. Neither its
        records nor the raw file are needed.
    step
        Checkpoint to load, in completed steps; the newest by default.

    Returns
    -------
    A model whose ``generate`` returns an AnnData.

    Raises
    ------
    CheckpointError
        If the folder holds no complete checkpoint, or not the one of ``step``.
    """
    from cellgan.start import load_tensorflow  # noqa: PLC0415

    load_tensorflow(whole_keras=True)  # the user may want it later
    from cellgan.generation.trained_model import TrainedModel  # noqa: PLC0415  (keeps import light)

    return TrainedModel.load(folder, step=step)
