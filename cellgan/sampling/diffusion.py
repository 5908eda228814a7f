"""Latents out of noise, one step of a noise schedule after the other.

Nothing here knows a network: a prediction is any function of noisy latents and a
position among the sampled steps, 0 the cleanest. Positions are scalars, or
``(n_cells,)`` where each cell is at its own.

References
----------
Ho et al. (2020), Denoising Diffusion Probabilistic Models.
https://arxiv.org/abs/2006.11239
Song et al. (2021), Denoising Diffusion Implicit Models.
https://arxiv.org/abs/2010.02502
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from cellgan.sampling.noise_schedules import Array, NoiseSchedule, Steps

Variance = Literal["fixed_large", "fixed_small", "learned_range"]


class Gaussian(NamedTuple):
    """A normal distribution of the next cleaner latent, every dimension by itself."""

    mean: tf.Tensor
    """``(n_cells, n_latent)``."""
    variance: tf.Tensor
    """Same shape, or one that spreads to it; that of the posterior is 0 at step 0."""
    log_variance: tf.Tensor
    """Its logarithm, where it is 0 that of the next noisier step."""


class Step(NamedTuple):
    """What a prediction says of a noisy latent."""

    cleaner: Gaussian
    """The next cleaner latent."""
    latent: tf.Tensor
    """``(n_cells, n_latent)``: the latent without noise."""


def add_noise(
    schedule: NoiseSchedule, latent: tf.Tensor, noise: tf.Tensor, position: tf.Tensor
) -> tf.Tensor:
    """Return ``x_t``: the latent ``(n_cells, n_latent)`` at a position.

    Parameters
    ----------
    schedule
        Of the steps.
    latent
        Without noise, ``(n_cells, n_latent)``.
    noise
        Standard normal, same shape.
    position
        Of the result.
    """
    signal = _at(schedule.signal_rate, position, latent)
    return signal * latent + _at(schedule.noise_rate, position, latent) * noise


def posterior(
    schedule: NoiseSchedule, latent: tf.Tensor, noisy: tf.Tensor, position: tf.Tensor
) -> Gaussian:
    """Return the distribution of the next cleaner latent, given that without noise.

    Parameters
    ----------
    schedule
        Of the steps.
    latent, noisy
        Without noise and at `position`, ``(n_cells, n_latent)``.
    position
        Of `noisy`.
    """
    mean = _at(schedule.posterior_from_latent, position, noisy) * latent
    mean += _at(schedule.posterior_from_noisy, position, noisy) * noisy
    return Gaussian(
        mean,
        _at(schedule.posterior_variance, position, noisy),
        _at(schedule.log_posterior_variance, position, noisy),
    )


def interpret(
    schedule: NoiseSchedule,
    output: tf.Tensor,
    noisy: tf.Tensor,
    position: tf.Tensor,
    *,
    variance: Variance = "fixed_large",
) -> Step:
    """Return what a network's output says of noisy latents.

    Parameters
    ----------
    schedule
        Of the steps.
    output
        The noise in `noisy`, ``(n_cells, n_latent)``; with a learned variance twice as
        wide.
    noisy
        Latents at `position`, ``(n_cells, n_latent)``.
    position
        Of `noisy`.
    variance
        - ``"fixed_large"``: beta, right for latents that are all different;
        - ``"fixed_small"``: that of the posterior, right for a single latent;
        - ``"learned_range"``: between the two, as the second half of the output says,
          from -1 for small to 1 for large.

    References
    ----------
    Nichol and Dhariwal (2021), Improved Denoising Diffusion Probabilistic Models,
    equation 15. https://arxiv.org/abs/2102.09672
    """
    if variance == "learned_range":
        output, between = tf.split(output, 2, axis=1)
    latent = _at(schedule.latent_from_noisy, position, noisy) * noisy
    latent -= _at(schedule.latent_from_noise, position, noisy) * output
    cleaner = posterior(schedule, latent, noisy, position)
    if variance == "fixed_large":
        log_variance = _at(schedule.log_large_variance, position, noisy)
    elif variance == "learned_range":
        largest = _at(np.log(schedule.betas), position, noisy)
        share = (between + 1) / 2
        log_variance = share * largest + (1 - share) * cleaner.log_variance
    if variance != "fixed_small":
        cleaner = Gaussian(cleaner.mean, tf.exp(log_variance), log_variance)
    return Step(cleaner, latent)


def ddpm_step(cleaner: Gaussian, noise: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Draw the next cleaner latent, ``(n_cells, n_latent)``; after step 0 its mean.

    Parameters
    ----------
    cleaner
        Its distribution.
    noise
        Standard normal.
    position
        That the step starts from.
    """
    deviation = tf.exp(0.5 * cleaner.log_variance)
    return cleaner.mean + _unless_last(position, noise) * deviation * noise


def ddim_step(
    schedule: NoiseSchedule,
    latent: tf.Tensor,
    noisy: tf.Tensor,
    position: tf.Tensor,
    *,
    eta: float = 0.0,
    noise: tf.Tensor | None = None,
) -> tf.Tensor:
    """Return the next cleaner latent, ``(n_cells, n_latent)``.

    Parameters
    ----------
    schedule
        Of the steps.
    latent
        What the prediction says is there without noise, ``(n_cells, n_latent)``.
    noisy
        Latents at `position`.
    position
        That the step starts from.
    eta
        Share of fresh noise: 0 for none, 1 for as much as in `ddpm_step` with the
        variance of the posterior.
    noise
        Standard normal; None with ``eta=0``.

    References
    ----------
    Song et al. (2021), Denoising Diffusion Implicit Models, equations 12 and 16.
    https://arxiv.org/abs/2010.02502
    """
    before, own = schedule.kept_before, schedule.kept
    sigma = eta * np.sqrt((1 - before) / (1 - own)) * np.sqrt(1 - own / before)
    predicted = _noise_in(schedule, latent, noisy, position)
    cleaner = _at(np.sqrt(before), position, noisy) * latent
    cleaner += _at(np.sqrt(1 - before - sigma**2), position, noisy) * predicted
    if noise is None:
        return cleaner
    fresh = _at(sigma, position, noisy) * noise
    return cleaner + _unless_last(position, noise) * fresh


class StepNetwork(Protocol):
    """Predicts the noise in latents; may start from what an earlier step computed."""

    def whole(
        self, latent: tf.Tensor, position: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the noise ``(n_cells, n_latent)``, and a feature to start from."""

    def part(
        self, feature: tf.Tensor, latent: tf.Tensor, position: tf.Tensor
    ) -> tf.Tensor:
        """Return the noise ``(n_cells, n_latent)``, from a feature of `whole`."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How noise is followed to latents.

    What a call computes is kept within it, features too: calls do not know each other.
    """

    schedule: NoiseSchedule
    kind: Literal["ddpm", "ddim"] = "ddpm"
    eta: float = 0.0
    """Of `ddim_step`."""
    variance: Literal["fixed_large", "fixed_small"] = "fixed_large"
    """Of `ddpm_step`."""
    full_steps: Steps | None = None
    """Positions at which the whole network is computed, as is the first; None for
    all."""

    @property
    def draws_noise(self) -> bool:
        """Whether the steps draw noise."""
        return self.kind == "ddpm" or self.eta > 0

    def is_full(self, first: int) -> np.ndarray:
        """Return, by position, whether the whole network is computed.

        Parameters
        ----------
        first
            Position that sampling starts at.
        """
        full = np.zeros(len(self.schedule), bool)
        full[[*self._full_steps(), first]] = True
        return full

    def step(
        self,
        output: tf.Tensor,
        noisy: tf.Tensor,
        position: tf.Tensor,
        noise: tf.Tensor | None,
        slope: tf.Tensor | None = None,
    ) -> Step:
        """Return the next cleaner latent, as the mean of `Step.cleaner`.

        Parameters
        ----------
        output
            Predicted noise, ``(n_cells, n_latent)``.
        noisy
            Latents at `position`.
        position
            Scalar.
        noise
            Standard normal; None if the sampler draws none.
        slope
            By which the mean is shifted, times the variance: the gradient, in `noisy`,
            of the log-probability of a label.

        References
        ----------
        Dhariwal and Nichol (2021), Diffusion Models Beat GANs on Image Synthesis,
        algorithms 1 and 2. https://arxiv.org/abs/2105.05233
        """
        schedule = self.schedule
        if slope is not None and self.kind == "ddim":
            output -= _at(schedule.noise_rate, position, noisy) * slope
        found = interpret(schedule, output, noisy, position, variance=self.variance)
        if self.kind == "ddim":
            cleaner = ddim_step(
                schedule, found.latent, noisy, position, eta=self.eta, noise=noise
            )
        else:
            gaussian = found.cleaner
            if slope is not None:
                shifted = gaussian.mean + gaussian.variance * slope
                gaussian = gaussian._replace(mean=shifted)
            cleaner = ddpm_step(gaussian, noise, position)
        return Step(found.cleaner._replace(mean=cleaner), found.latent)

    def sample(
        self,
        network: StepNetwork,
        start: tf.Tensor,
        noise_of: Callable[[tf.Tensor], tf.Tensor],
        *,
        slope_of: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
        first: int | None = None,
    ) -> tf.Tensor:
        """Follow noise to latents, in one loop that XLA can compile.

        Parameters
        ----------
        network
            Predicts the noise.
        start
            Standard normal ``(n_cells, n_latent)``, or what `add_noise` makes of
            latents at `first`.
        noise_of
            ``position -> noise (n_cells, n_latent)``, standard normal, drawn anew at
            every position. Not called if no noise is drawn.
        slope_of
            ``(noisy, position) -> slope`` of `step`; None for none.
        first
            Position to start at; the noisiest by default.

        Returns
        -------
        ``(n_cells, n_latent)``.
        """
        last = len(self.schedule) - 1
        first = last if first is None else first
        is_full = self.is_full(first)
        flags = tf.constant(is_full)

        def cleaner(
            output: tf.Tensor, noisy: tf.Tensor, position: tf.Tensor
        ) -> tf.Tensor:
            noise = noise_of(position) if self.draws_noise else None
            slope = None if slope_of is None else slope_of(noisy, position)
            return self.step(output, noisy, position, noise, slope).cleaner.mean

        def uncached(position: tf.Tensor, noisy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            output, _ = network.whole(noisy, position)
            return position - 1, cleaner(output, noisy, position)

        def cached(
            position: tf.Tensor, noisy: tf.Tensor, feature: tf.Tensor
        ) -> tuple[tf.Tensor, ...]:
            output, feature = tf.cond(
                flags[position],
                lambda: tuple(network.whole(noisy, position)),
                lambda: (network.part(feature, noisy, position), feature),
            )
            return position - 1, cleaner(output, noisy, position), feature

        def goes_on(position: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
            return position >= 0

        position = tf.constant(first)
        if is_full[: first + 1].all():
            return tf.while_loop(goes_on, uncached, (position, start))[1]
        # The first step is a full one, and tells the shape of the feature.
        output, feature = network.whole(start, position)
        after = cleaner(output, start, position)
        return tf.while_loop(goes_on, cached, (position - 1, after, feature))[1]

    def _full_steps(self) -> list[int]:
        if self.full_steps is None:
            return list(range(len(self.schedule)))
        steps: list[int] = self.full_steps.tolist()
        return steps


def _noise_in(
    schedule: NoiseSchedule, latent: tf.Tensor, noisy: tf.Tensor, position: tf.Tensor
) -> tf.Tensor:
    """Return the noise that is in `noisy` if `latent` is what is there without it."""
    difference = _at(schedule.latent_from_noisy, position, noisy) * noisy - latent
    return difference / _at(schedule.latent_from_noise, position, noisy)


def _unless_last(position: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Return 1, at position 0 0, as factors of rows."""
    return _as_factor(tf.cast(position > 0, values.dtype))


def _at(table: Array, position: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Return values of a float64 table as factors of rows ``(n_cells, n_latent)``."""
    return _as_factor(tf.gather(tf.constant(table, like.dtype), position))


def _as_factor(values: tf.Tensor) -> tf.Tensor:
    return values[:, None] if values.shape.rank else values
