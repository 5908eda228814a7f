"""How much genes vary beyond genes of like expression."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

N_BINS = 20
"""Of mean expression, in which dispersions are compared."""
SMALLEST_MEAN = 1e-12

Floats = npt.NDArray[np.float64]


def dispersions_in_bins(mean: Floats, variance: Floats) -> Floats:
    """Return normalised dispersions from the moments of genes.

    Parameters
    ----------
    mean, variance
        Of expression per 10,000, without a logarithm, ``(n_genes,)``; a variance of 0
        says that a gene does not vary.

    Returns
    -------
    ``(n_genes,)``: the logarithm of variance over mean, less its mean among the genes
    of a bin of ``log(1 + mean)``, over its standard deviation there; 1 for a gene that
    is alone in its bin; nan for a gene that does not vary.

    References
    ----------
    Satija et al. (2015), Spatial reconstruction of single-cell gene expression data.
    https://doi.org/10.1038/nbt.3192
    """
    mean = np.where(mean == 0, SMALLEST_MEAN, mean)
    ratio = variance / mean
    dispersion = np.log(ratio, out=np.full_like(ratio, np.nan), where=ratio > 0)
    bins = pd.cut(pd.Series(np.log1p(mean)), N_BINS, labels=False)
    of_bins = pd.Series(dispersion).groupby(bins)
    center, spread = (of_bins.transform(kind).to_numpy() for kind in ("mean", "std"))
    is_alone = np.isnan(spread) & ~np.isnan(dispersion)
    with np.errstate(invalid="ignore", divide="ignore"):
        normalized = (dispersion - center) / spread
    found: Floats = np.where(is_alone, 1.0, normalized)
    return found
