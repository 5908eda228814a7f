"""Store a small trained experiment of each family, and the cells it makes.

``python -m tests.store_experiments`` replaces ``tests/reference/experiments``, which
`tests.test_stored_experiments` reads. It processes, trains and generates through the
command line.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import anndata
import mudata
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cellgan.cli import main
from tests.synthetic import make_cells

Arrays = dict[str, npt.NDArray[Any]]

FOLDER = Path(__file__).parent / "reference" / "experiments"
RAW_FILES = ("raw.h5ad", "atac.h5ad")
STEPS = (2, 4)
"""Where training keeps a checkpoint; the last is its end."""
MADE = Path("made")
"""Where cells go."""
EXPECTED = "expected.npz"
"""Cells, as ``<experiment>/<request>/<place in the file>``."""
MACHINE = "machine.json"
ROUNDING = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "XLA_FLAGS")
"""Environment variables that change the last bits of results."""
LIBRARIES = ("keras", "numpy", "tensorflow")

GAN = {"latent_dim": 4, "critic_layers": [8, 6], "gen_layers": [6, 8]}
FLOW = {"width": 8, "embedding_width": 8, "n_blocks": 1}
DIFFUSION: dict[str, Any] = {
    "type": "cfDiffusion",
    "autoencoder": {"n_latent": 4, "layers": [8]},
    "diffusion": {"widths": [8, 6, 4], "n_steps": 100, "average_rate": 0.5},
}
STAGES = {
    "CFGen": ("autoencoder", "flow"),
    "CFGen_multiome": ("autoencoder", "flow"),
    "cfDiffusion": ("autoencoder", "diffusion"),
    "cfDiffusion_classifiers": ("autoencoder", "diffusion", "classifier"),
}
"""Of models that are trained in several."""
RATE = {"decay": False, "alpha_0": 0.02}
"""Large, so that a few steps change what is made."""
MODELS: dict[str, dict[str, Any]] = {
    "scGAN": {"type": "scGAN", **GAN},
    "cscGAN": {"type": "cscGAN", **GAN},
    "CFGen": {
        "type": "CFGen",
        "autoencoder": {"n_latent": 4, "rna_layers": [8], "dropout": 0.2},
        "flow": {**FLOW, "use_library_size": True},
    },
    "CFGen_multiome": {
        "type": "CFGen",
        "autoencoder": {"n_latent": 4, "rna_layers": [8], "atac_layers": [8]},
        "flow": FLOW,
    },
    "cfDiffusion": DIFFUSION,
    "cfDiffusion_classifiers": {**DIFFUSION, "classifier": {"widths": [8, 6]}},
    "cycleAE": {"type": "cycleAE", "n_latent": 4, "classifier_width": 6},
    "LDVAE": {
        "type": "LDVAE",
        "n_latent": 3,
        "n_hidden": 8,
        "batch_key": "batch",
        "kl": {"unit": "share", "length": 0.5},
    },
}

BY_LABEL = ("--cells_no", "3", "2", "4")
TO_NEW = ("--condition", "batch=new")
REQUESTS: dict[str, dict[str, tuple[str, ...]]] = {
    "scGAN": {
        "normalized": ("--generate", "--cells_no", "8"),
        "counts": ("--generate", "--cells_no", "8", "--counts"),
    },
    "cscGAN": {
        "normalized": ("--generate", *BY_LABEL),
        "counts": ("--generate", "--cells_no", "type B=5", "type A=3", "--counts"),
    },
    "CFGen": {
        "guided": (
            *("--generate", "--cells_no", "8", *TO_NEW),
            *("--guidance", "cell_type=1.5", "--solver", "euler"),
        ),
        "sized": ("--generate", *BY_LABEL, "--library-size", "150"),
        "corrected": ("--correct", "batch=new"),
        "embedded": ("--embed", "--layers", "normalized"),
    },
    "CFGen_multiome": {"modelled": ("--generate", *BY_LABEL)},
    "cfDiffusion": {
        "ddpm": ("--generate", *BY_LABEL, "--solver", "ddpm", "--n-steps", "100"),
        "cached": (
            *("--generate", "--cells_no", "8", *TO_NEW, "--guidance", "batch=2"),
            *("--solver", "ddim", "--n-steps", "10", "--cache-interval", "2"),
        ),
        "interpolated": ("--interpolate", "type A", "type C", "--cells_no", "3"),
    },
    "cfDiffusion_classifiers": {
        "steered": ("--generate", *BY_LABEL, "--guidance", "cell_type=2"),
    },
    "cycleAE": {
        "edited": ("--generate", *BY_LABEL, *TO_NEW),
        "counts": ("--generate", *BY_LABEL, "--counts"),
        "counterfactual": ("--counterfactual", "batch=new"),
    },
    "LDVAE": {
        "posterior": ("--generate", *BY_LABEL),
        "prior": ("--generate", "--cells_no", "8", "--latents", "prior"),
        "embedded": ("--embed", "--n-samples", "2"),
    },
}
"""By experiment: name of some cells -> how they are asked for."""


def write_raw_cells() -> None:
    """Write synthetic cells of three types in two batches, and their ATAC counts."""
    cells = make_cells(n_cells=60, n_genes=20)
    batches = np.where(np.random.default_rng(1).random(60) < 0.5, "old", "new")
    obs = pd.DataFrame({"cell_type": cells.labels, "batch": batches})
    obs.index = pd.Index([f"cell_{row}" for row in range(60)])
    rna = anndata.AnnData(cells.counts, obs=obs)
    rna.var_names = [f"gene_{column}" for column in range(rna.n_vars)]
    atac = anndata.AnnData(make_cells(60, 12, seed=1).counts, obs=obs[[]])
    atac.var_names = [f"peak_{column}" for column in range(atac.n_vars)]
    for path, modality in zip(RAW_FILES, (rna, atac), strict=True):
        modality.write_h5ad(path)


def parameters_of(name: str) -> dict[str, Any]:
    """Return the blocks of one experiment."""
    atac = {"atac": {"raw_input": RAW_FILES[1]}} if "multiome" in name else {}
    return {
        "input_ds": {
            "raw_input": RAW_FILES[0],
            "clustering": {"key": "cell_type"},
            "covariates": ["batch"],
            "filtering": {"min_cells": 1, "min_genes": 1},
            "scale": "normalize_per_cell_LS_1000",
            "split": {"test_cells": 6, "valid_cells": 6},
            **atac,
        },
        "training": {
            "max_steps": STEPS[-1],
            "batch_size": 16,
            "learning_rate": RATE,
            "progress_freq": 0,
            "validation_freq": 0,
            "summary_freq": 0,
            "save_freq": STEPS[0],
            "stages": {
                stage: {"max_steps": STEPS[-1], "learning_rate": RATE}
                for stage in STAGES.get(name, ())
            },
        },
        "model": MODELS[name],
    }


def write_parameters() -> None:
    """Write the parameters of all experiments, which are of the working folder."""
    document = {
        "exp_param": {"experiments_dir": ".", "GPU": []},
        "experiments": {name: parameters_of(name) for name in MODELS},
    }
    Path("parameters.json").write_text(json.dumps(document, indent=4) + "\n")


def run(name: str, *words: str) -> None:
    """Run one experiment of the working folder from the command line."""
    assert main(["--param", "parameters.json", "--experiment", name, *words]) == 0


def make(name: str, request: str) -> Arrays:
    """Make the cells of a request of an experiment of the working folder."""
    suffix = ".h5mu" if "multiome" in name else ".h5ad"
    path = (MADE / f"{name}-{request}").with_suffix(suffix)
    run(name, *REQUESTS[name][request], "--save_path", str(path))
    return read_cells(path)


def read_cells(path: Path) -> Arrays:
    """Return the cells of a file, by place."""
    if path.suffix == ".h5ad":
        return arrays_of(anndata.read_h5ad(path))
    with mudata.set_options(pull_on_update=False):
        parts = mudata.read_h5mu(path).mod
    return {
        f"{modality}/{place}": values
        for modality, cells in parts.items()
        for place, values in arrays_of(cells).items()
    }


def arrays_of(cells: anndata.AnnData) -> Arrays:
    """Return the cells of one modality, and what their values are said to be."""
    places = {
        "X": cells.X,
        "scale": cells.uns.get("cellgan", {}).get("scale", ""),
        "obs_names": cells.obs_names,
        "var_names": cells.var_names,
        **{f"obs/{name}": cells.obs[name] for name in cells.obs},
        **{f"obsm/{name}": values for name, values in cells.obsm.items()},
        **{f"layers/{name}": values for name, values in cells.layers.items()},
    }
    return {name: as_array(values) for name, values in places.items()}


def as_array(values: Any) -> npt.NDArray[Any]:
    """Return numbers as they are and everything else as text."""
    array = values.toarray() if sp.issparse(values) else np.asarray(values)
    return array if array.dtype.kind in "fiub" else array.astype(str)


def machine() -> dict[str, Any]:
    """Return all that the last bits of results depend on."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    return {
        "processor": platform.machine(),
        "instructions": sorted(w for w in words if w.startswith(("avx", "fma", "amx"))),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "environment": {name: os.environ.get(name, "") for name in ROUNDING},
    }


def store() -> None:
    """Write every experiment and its cells."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    os.chdir(FOLDER)
    write_raw_cells()
    write_parameters()
    expected: Arrays = {}
    for name, requests in REQUESTS.items():
        run(name, "--process", "--train")
        for request in requests:
            cells = make(name, request)
            expected |= {f"{name}/{request}/{key}": of for key, of in cells.items()}
    np.savez_compressed(EXPECTED, **expected)
    Path(MACHINE).write_text(json.dumps(machine(), indent=4) + "\n")
    for leftover in (MADE, *Path().glob("*/job/*/logs")):
        shutil.rmtree(leftover)
    for raw_file in RAW_FILES:
        Path(raw_file).unlink()


if __name__ == "__main__":
    store()
