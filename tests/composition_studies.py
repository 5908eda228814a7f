"""Small composition studies: files of cells, and their parameters."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from tests.synthetic import make_cells

N_CELLS = 300
N_GENES = 40


def write_source(
    path: Path,
    seed: int,
    *,
    n_cells: int = N_CELLS,
    genes: list[str] | None = None,
    **obs: Any,
) -> ad.AnnData:
    """Write counts of three clusters; cells are named after the file."""
    genes = genes or [f"gene_{number:02d}" for number in range(N_GENES)]
    cells = make_cells(n_cells, len(genes), seed=seed)
    names = pd.Index([f"{path.stem}_{number}" for number in range(n_cells)])
    columns = {"cell_type": cells.labels, **obs}
    adata = ad.AnnData(
        sp.csr_matrix(cells.counts),
        obs=pd.DataFrame(columns, index=names),
        var=pd.DataFrame(index=genes),
    )
    adata.write_h5ad(path)
    return adata


def donors(n_cells: int = N_CELLS, n_donors: int = 3) -> list[str]:
    return [f"donor {number % n_donors}" for number in range(n_cells)]


def composition(folder: Path) -> dict[str, Any]:
    """Return the block of a study of two sources, which are written if need be."""
    if not (folder / "blood.h5ad").exists():
        write_source(folder / "blood.h5ad", 0, donor=donors())
        write_source(folder / "marrow.h5ad", 1)
    return copy.deepcopy(
        {
            "sources": {
                "blood": {"file": str(folder / "blood.h5ad"), "cells": 80},
                "marrow": {"file": str(folder / "marrow.h5ad"), "cells": 80},
            },
            "mixtures": {
                "base": [{"source": "blood"}],
                "control": [{"source": "blood"}, {"source": "blood", "slot": 1}],
                "plus": [{"source": "blood"}, {"source": "marrow"}],
            },
            "baseline": "base",
            "size_control": "control",
            "evaluations": {
                "blood": {"source": "blood", "cells": 60, "genes": "all"},
                "marrow": {"source": "marrow", "cells": 50, "genes": "all"},
            },
            "replicates": 50,
        }
    )


def parameters(folder: Path, block: dict[str, Any], **others: Any) -> dict[str, Any]:
    model = {"type": "LDVAE", "n_latent": 3, "n_hidden": 16}
    entry = {"composition": block, "model": model, **others}
    return {
        "exp_param": {"experiments_dir": str(folder / "experiments"), "GPU": []},
        "experiments": {"study": entry},
    }


def write_parameters(
    folder: Path, block: dict[str, Any] | None = None, **others: Any
) -> Path:
    path = folder / "parameters.json"
    block = composition(folder) if block is None else block
    path.write_text(json.dumps(parameters(folder, block, **others)))
    return path


def cell_numbers(names: list[str]) -> np.ndarray:
    return np.array([int(name.rsplit("_", 1)[1]) for name in names])
