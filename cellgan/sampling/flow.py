"""Following a velocity from noise to latents, or back.

Fixed-step solvers treat each cell by itself. The adaptive one measures its error over
all cells of a call, so that a cell's latent depends slightly on its companions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import tensorflow as tf

from cellgan.errors import SamplingError

Velocity = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""``(latent (n_cells, n_latent), time ()) -> d latent / d time``."""
Solver = Literal["euler", "midpoint", "heun", "rk4", "dopri5"]
MAX_ADAPTIVE_STEPS = 10_000
"""Of the adaptive solver, those that it rejects included."""


class Solution(NamedTuple):
    """Where a velocity leads."""

    latent: tf.Tensor
    """``(n_cells, n_latent)``."""
    n_evaluations: tf.Tensor
    """Calls of the velocity."""
    is_finite: tf.Tensor
    """Whether all of `latent` is; a latent that is not must not be used."""


class RungeKutta(NamedTuple):
    """An explicit Runge-Kutta scheme, as its tableau."""

    nodes: tuple[float, ...]
    """Time of each stage, as a share of the step."""
    matrix: tuple[tuple[float, ...], ...]
    """Row i: the shares of the earlier stages' slopes on the way to stage i."""
    weights: tuple[float, ...]
    """Share of each stage's slope in the step."""


FIXED_STEP = {
    # Of orders 1, 2, 2 and 4. Heun's is the explicit trapezoidal rule.
    "euler": RungeKutta((0.0,), ((),), (1.0,)),
    "midpoint": RungeKutta((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun": RungeKutta((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": RungeKutta(
        (0.0, 0.5, 0.5, 1.0),
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
}


def solve(
    velocity: Velocity,
    start: tf.Tensor,
    *,
    solver: Solver,
    n_steps: int = 20,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    reverse: bool = False,
) -> Solution:
    """Follow a velocity from time 0 to 1.

    Parameters
    ----------
    velocity
        Called with a scalar time.
    start
        Noise, ``(n_cells, n_latent)``; with `reverse`, latents.
    solver
        - ``"euler"``, ``"midpoint"``, ``"heun"``, ``"rk4"``: `n_steps` equal steps of
          1, 2, 2 or 4 evaluations;
        - ``"dopri5"``: Dormand-Prince 5(4) of TensorFlow Probability, whose steps
          follow `rtol` and `atol`.
    n_steps
        Of a fixed-step solver.
    rtol, atol
        Relative and absolute error that a step of the adaptive solver may make, as a
        root mean square over cells and dimensions.
    reverse
        Follow it back, from latents at time 1 to noise at time 0.

    Raises
    ------
    tensorflow.errors.InvalidArgumentError
        By the adaptive solver, in a graph and eagerly, after `MAX_ADAPTIVE_STEPS`.

    Notes
    -----
    Made to be traced; call it through `checked_solver`, which compiles, and raises an
    error that says what happened. XLA ignores the limit of the adaptive solver's steps,
    which then need never end.
    """
    followed = _reversed(velocity) if reverse else velocity
    if solver == "dopri5":
        end, n_evaluations = _dormand_prince(followed, start, rtol, atol)
    else:
        scheme = FIXED_STEP[solver]
        end = _fixed_steps(followed, start, scheme, n_steps)
        n_evaluations = tf.constant(n_steps * len(scheme.nodes))
    return Solution(end, n_evaluations, tf.reduce_all(tf.math.is_finite(end)))


class CheckedSolver(Protocol):
    """Follows a velocity; its latents are finite."""

    def __call__(self, start: tf.Tensor, *context: tf.Tensor) -> tf.Tensor:
        """Return where noise ``(n_cells, n_latent)`` leads.

        `context` are further arguments of the velocity, such as conditions.
        """


def checked_solver(
    velocity: Callable[..., tf.Tensor],
    *,
    solver: Solver,
    n_steps: int = 20,
    tolerance: float = 1e-3,
    reverse: bool = False,
    jit: bool = False,
) -> CheckedSolver:
    """Compile `solve` for one velocity; calls raise where it has no result.

    Parameters
    ----------
    velocity
        ``(latent, time, *context) -> d latent / d time``.
    solver, n_steps, reverse
        Of `solve`.
    tolerance
        Relative and absolute, of the adaptive solver.
    jit
        Compile by XLA: fixed-step solvers as a whole, of the adaptive one the velocity.

    Raises
    ------
    SamplingError
        By a call, if a latent is not finite, or if the adaptive solver gives up.
    """
    is_fixed = solver in FIXED_STEP
    field = velocity
    if jit and not is_fixed:
        field = tf.function(velocity, jit_compile=True, autograph=False)

    @tf.function(jit_compile=jit and is_fixed, autograph=not is_fixed)
    def compiled(start: tf.Tensor, *context: tf.Tensor) -> Solution:
        return solve(
            lambda latent, time: field(latent, time, *context),
            start,
            solver=solver,
            n_steps=n_steps,
            rtol=tolerance,
            atol=tolerance,
            reverse=reverse,
        )

    def checked(start: tf.Tensor, *context: tf.Tensor) -> tf.Tensor:
        try:
            solution = compiled(start, *context)
        except tf.errors.InvalidArgumentError as error:
            if "max_num_steps" not in str(error):
                raise
            message = (
                f'solver "{solver}": not at the end after {MAX_ADAPTIVE_STEPS} steps '
                f"at tolerance {tolerance:g}. Raise the tolerance, or choose a "
                f"fixed-step solver: {', '.join(FIXED_STEP)}."
            )
            raise SamplingError(message) from None
        if not solution.is_finite:
            message = (
                f'solver "{solver}": latents became infinite or nan on the way. Lower '
                f"the guidance scales, take more steps, or train the model further."
            )
            raise SamplingError(message)
        return solution.latent

    return checked


def _reversed(velocity: Velocity) -> Velocity:
    # Time runs on, as s = 1 - t: asked to run backwards, TensorFlow Probability's
    # solver returns nan and reports success.
    return lambda latent, time: -velocity(latent, 1 - time)


def _fixed_steps(
    velocity: Velocity, start: tf.Tensor, scheme: RungeKutta, n_steps: int
) -> tf.Tensor:
    def step(index: tf.Tensor, latent: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        position = tf.cast(index, start.dtype)
        slopes: list[tf.Tensor] = []
        for node, row in zip(scheme.nodes, scheme.matrix, strict=True):
            point = _advance(latent, row, slopes, n_steps)
            slopes.append(velocity(point, (position + node) / n_steps))
        return index + 1, _advance(latent, scheme.weights, slopes, n_steps)

    return tf.while_loop(
        lambda index, _: index < n_steps,
        step,
        (tf.constant(0), start),
        maximum_iterations=n_steps,
    )[1]


def _advance(
    latent: tf.Tensor, shares: tuple[float, ...], slopes: list[tf.Tensor], n_steps: int
) -> tf.Tensor:
    for share, slope in zip(shares, slopes, strict=True):
        if share:
            latent = latent + (share / n_steps) * slope
    return latent


def _dormand_prince(
    velocity: Velocity, start: tf.Tensor, rtol: float, atol: float
) -> tuple[tf.Tensor, tf.Tensor]:
    import tensorflow_probability as tfp  # noqa: PLC0415  (seconds, for this only)

    solver = tfp.math.ode.DormandPrince(
        rtol=rtol, atol=atol, max_num_steps=MAX_ADAPTIVE_STEPS
    )
    result = solver.solve(
        lambda time, latent: velocity(latent, time),
        initial_time=0.0,
        initial_state=start,
        solution_times=[1.0],
    )
    return result.states[-1], result.diagnostics.num_ode_fn_evaluations
