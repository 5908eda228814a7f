"""How noise takes over a latent, step by step, and which of the steps are taken back.

In step ``t`` a latent keeps ``sqrt(1 - beta_t)`` of itself and gets ``sqrt(beta_t)`` of
noise, so that after it ``x_t = sqrt(kept_t) x + sqrt(1 - kept_t) noise``, with
``kept_t`` the product of ``1 - beta`` up to ``t``. Step 0 is the cleanest. Everything
here is float64 in NumPy and worked out once; what samples is in `diffusion`.

References
----------
Ho et al. (2020), Denoising Diffusion Probabilistic Models, section 2.
https://arxiv.org/abs/2006.11239
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]

LINEAR_ENDS = (1e-4, 0.02)
LARGEST_BETA = 0.999
COSINE_OFFSET = 0.008
CENTRE, POWER = 120, 1.5
"""Of `uneven_full_steps`, as the original has them for 1000 steps."""
POWER_DECREMENT = 0.02


def linear_betas(n_steps: int, *, scaled: bool = False) -> Array:
    """Return betas that rise from 1e-4 to 0.02.

    Parameters
    ----------
    n_steps
        How many.
    scaled
        Multiply both ends by ``1000 / n_steps``, as scDiffusion does, so that any
        number of steps ends in the same noise.
    """
    factor = 1000 / n_steps if scaled else 1.0
    first, last = LINEAR_ENDS
    return np.linspace(factor * first, factor * last, n_steps, dtype=np.float64)


def cosine_betas(n_steps: int) -> Array:
    """Return betas by which the kept share follows a squared cosine.

    References
    ----------
    Nichol and Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models,
    equation 17. https://arxiv.org/abs/2102.09672
    """
    ends = np.arange(n_steps + 1) / n_steps
    angle = (ends + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2
    kept = np.cos(angle) ** 2
    betas = np.minimum(1 - kept[1:] / kept[:-1], LARGEST_BETA)
    return betas.astype(np.float64)


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """Betas of the steps that are sampled, and all that follows from them.

    Every table is ``(n_steps,)``, by position among the sampled steps, and named after
    what it is in x_t and in the posterior of the next cleaner latent.
    """

    betas: Array
    original_steps: Steps
    """Number of each step in the schedule that was trained on, ascending: what the
    network is given."""

    @classmethod
    def of(cls, betas: Array) -> NoiseSchedule:
        """Return the schedule of all steps."""
        return cls(betas, np.arange(len(betas)))

    def respaced(self, kept_steps: Steps) -> NoiseSchedule:
        """Return the schedule of some steps, between which noise is as it was.

        Parameters
        ----------
        kept_steps
            Ascending positions, as of `spaced_steps`.
        """
        kept = self.kept[kept_steps]
        before = np.concatenate([[1.0], kept[:-1]])
        return NoiseSchedule(1 - kept / before, self.original_steps[kept_steps])

    def __len__(self) -> int:
        return len(self.betas)

    @functools.cached_property
    def kept(self) -> Array:
        """Share of the latent's variance that is left."""
        return np.cumprod(1 - self.betas).astype(np.float64)

    @property
    def kept_before(self) -> Array:
        """`kept` of the next cleaner step, 1 before the first."""
        return np.concatenate([[1.0], self.kept[:-1]])

    @property
    def signal_rate(self) -> Array:
        """Factor of the latent in x_t."""
        return np.sqrt(self.kept)

    @property
    def noise_rate(self) -> Array:
        """Factor of the noise in x_t."""
        return np.sqrt(1 - self.kept)

    @property
    def latent_from_noisy(self) -> Array:
        """Factor of x_t in the latent it comes from."""
        return np.sqrt(1 / self.kept)

    @property
    def latent_from_noise(self) -> Array:
        """Factor of the noise in the latent, with a minus sign."""
        return np.sqrt(1 / self.kept - 1)

    @property
    def posterior_variance(self) -> Array:
        """Of the next cleaner latent, given x_t and the latent; 0 at step 0."""
        return self.betas * (1 - self.kept_before) / (1 - self.kept)

    @property
    def log_posterior_variance(self) -> Array:
        """Its logarithm, at step 0 that of step 1."""
        variance = self.posterior_variance
        return np.log(np.concatenate([variance[1:2], variance[1:]]))

    @property
    def posterior_from_latent(self) -> Array:
        """Factor of the latent in the posterior mean."""
        return self.betas * np.sqrt(self.kept_before) / (1 - self.kept)

    @property
    def posterior_from_noisy(self) -> Array:
        """Factor of x_t in the posterior mean."""
        return (1 - self.kept_before) * np.sqrt(1 - self.betas) / (1 - self.kept)

    @property
    def log_large_variance(self) -> Array:
        """Logarithm of the betas, at step 0 of the posterior variance of step 1."""
        return np.log(np.concatenate([self.posterior_variance[1:2], self.betas[1:]]))


def spaced_steps(n_steps: int, counts: Sequence[int]) -> Steps:
    """Choose steps evenly, from the first to the last of equal sections.

    Parameters
    ----------
    n_steps
        Steps there are.
    counts
        How many to keep in each section, from the cleanest on; a single number is that
        of all steps.

    Returns
    -------
    Ascending.

    Raises
    ------
    ValueError
        If a section has fewer steps than are to be kept.
    """
    sizes = np.full(len(counts), n_steps // len(counts))
    sizes[: n_steps % len(counts)] += 1
    kept: list[int] = []
    start = 0
    for size, count in zip(sizes.tolist(), counts, strict=True):
        if count > size:
            message = f"{count} steps cannot be taken of {size}."
            raise ValueError(message)
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        # Rounds halves to even, as the original.
        kept += [start + round(stride * index) for index in range(count)]
        start += size
    return np.array(sorted(set(kept)))


def even_full_steps(n_steps: int, interval: int) -> Steps:
    """Return the steps in which every layer is computed: multiples of `interval`.

    The first step that is sampled, the noisiest, always is one of them besides.
    """
    return np.arange(0, n_steps, interval)


def uneven_full_steps(
    n_steps: int, interval: int, *, centre: int = CENTRE, power: float = POWER
) -> Steps:
    """Return as many steps, closer to each other below and around `centre`.

    Parameters
    ----------
    n_steps
        Steps there are.
    interval
        ``n_steps // interval`` steps are chosen where a power is found that gives as
        many, else about as many.
    centre, power
        Gaps grow with the distance to `centre`, the more the larger `power`.

    Notes
    -----
    As in the original, the root of the negative end is the principal complex one, and
    the imaginary parts are then left out; it is lowered power by power until the
    number is right.

    References
    ----------
    Ma et al. (2024), DeepCache: Accelerating Diffusion Models for Free, appendix.
    https://arxiv.org/abs/2312.00858
    """
    n_full = n_steps // interval
    while True:
        start = complex(-centre) ** (1 / power)
        end = complex(n_steps - centre) ** (1 / power)
        between = start + np.arange(n_full + 1) * (end - start) / n_full
        offsets = np.unique(np.trunc((between**power).real).astype(np.int64))
        steps = np.unique(np.concatenate([[0], offsets[1:-1] + centre]))
        power -= POWER_DECREMENT
        if len(steps) == n_full or power <= 1:
            return steps
