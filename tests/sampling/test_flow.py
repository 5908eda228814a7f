from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cellgan.errors import SamplingError
from cellgan.sampling import flow
from cellgan.sampling.flow import checked_solver, solve

START = tf.constant([[1.0, 0.0], [0.5, -2.0], [0.0, 3.0]], tf.float64)
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def rotation(latent, time):
    """Turn by ``2 t^2`` radians until time t."""
    x, y = tf.unstack(latent, axis=1)
    return 4 * time * tf.stack([-y, x], axis=1)


def rotated(angle=2.0):
    cosine, sine = np.cos(angle), np.sin(angle)
    return START.numpy() @ np.array([[cosine, sine], [-sine, cosine]])


def growth(latent, time):
    """Solved by ``start * exp(t) + t`` on every axis."""
    return latent - time + 1


@pytest.mark.parametrize("solver", ORDERS)
def test_error_falls_with_the_order_of_the_solver(solver):
    steps = np.array([8, 16, 32, 64])
    errors = [
        np.abs(
            solve(rotation, START, solver=solver, n_steps=n).latent - rotated()
        ).max()
        for n in steps
    ]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert abs(-slope - ORDERS[solver]) < 0.15


@pytest.mark.parametrize(
    ("solver", "n_stages"), list(zip(ORDERS, (1, 2, 2, 4), strict=True))
)
def test_evaluations_are_counted(solver, n_stages):
    calls = []

    def velocity(latent, time):
        calls.append(float(time))
        return rotation(latent, time)

    solution = solve(velocity, START, solver=solver, n_steps=5)
    assert int(solution.n_evaluations) == len(calls) == 5 * n_stages
    assert min(calls) == 0
    assert max(calls) <= 1


@pytest.mark.parametrize("solver", ["rk4", "dopri5"])
@pytest.mark.parametrize(
    ("velocity", "expected"),
    [
        (rotation, rotated()),
        (growth, START.numpy() * np.exp(1) + 1),
    ],
)
def test_solvers_reach_the_closed_form(solver, velocity, expected):
    solution = solve(velocity, START, solver=solver, n_steps=200, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(solution.latent, expected, rtol=0, atol=1e-6)
    assert solution.is_finite


@pytest.mark.slow
def test_adaptive_solver_works_harder_for_a_lower_tolerance():
    loose, tight = (
        solve(rotation, START, solver="dopri5", rtol=tolerance, atol=tolerance)
        for tolerance in (1e-3, 1e-8)
    )
    loose_error, tight_error = (
        np.abs(solution.latent - rotated()).max() for solution in (loose, tight)
    )
    assert int(loose.n_evaluations) * 2 < int(tight.n_evaluations)
    assert tight_error < 1e-6 < loose_error < 1e-2


@pytest.mark.parametrize(
    ("solver", "bound"),
    # The two errors of Euler add up to about 8 / n_steps of the largest latent.
    [
        ("euler", 0.08),
        ("midpoint", 1e-3),
        ("heun", 1e-3),
        ("rk4", 1e-6),
        ("dopri5", 1e-5),
    ],
)
def test_reverse_undoes_forward(solver, bound):
    options = {"solver": solver, "n_steps": 400, "tolerance": 1e-7}
    end = checked_solver(rotation, **options)(START)
    back = checked_solver(rotation, **options, reverse=True)(end)
    assert np.abs(end - START).max() > 1
    assert np.abs(back - START).max() < bound


def test_reverse_passes_time_from_1_to_0():
    times = []

    def velocity(latent, time):
        times.append(float(time))
        return tf.zeros_like(latent)

    solve(velocity, START, solver="euler", n_steps=4, reverse=True)
    assert times == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("solver", ORDERS)
def test_xla_gives_the_result_of_the_graph(solver):
    def turn(latent, time, speed):
        return speed * rotation(latent, time)

    plain, compiled = (
        checked_solver(turn, solver=solver, n_steps=7, jit=jit) for jit in (False, True)
    )
    speed = tf.constant(0.5, tf.float64)
    expected = plain(START, speed)
    np.testing.assert_allclose(compiled(START, speed), expected, rtol=1e-12)
    assert np.abs(expected - plain(START, 2 * speed)).max() > 0.1


@pytest.mark.parametrize("solver", ["euler", "rk4"])
@pytest.mark.parametrize("jit", [False, True])
def test_latents_that_are_not_finite_are_refused(solver, jit):
    explode = checked_solver(lambda x, _: 1e30 * x**3, solver=solver, jit=jit)
    with pytest.raises(SamplingError, match="latents became infinite or nan"):
        explode(tf.ones((3, 2)))


def test_adaptive_solver_that_meets_nan_is_refused(monkeypatch):
    monkeypatch.setattr(flow, "MAX_ADAPTIVE_STEPS", 50)
    broken = checked_solver(lambda x, _: x * np.nan, solver="dopri5")
    with pytest.raises(SamplingError, match="not at the end after 50 steps"):
        broken(tf.ones((3, 2)))


def test_adaptive_solver_that_takes_too_many_steps_is_refused(monkeypatch):
    monkeypatch.setattr(flow, "MAX_ADAPTIVE_STEPS", 50)
    fast = checked_solver(
        lambda x, time: 1e4 * tf.cos(1e4 * time) + 0 * x, solver="dopri5", jit=True
    )
    with pytest.raises(SamplingError, match="after 50 steps at tolerance 0"):
        fast(tf.ones((3, 2)))


def test_other_errors_of_a_velocity_are_not_hidden():
    def velocity(latent, time):
        tf.debugging.assert_less(time, -1.0, "not mine")
        return latent

    with pytest.raises(tf.errors.InvalidArgumentError, match="not mine"):
        checked_solver(velocity, solver="euler")(tf.ones((3, 2)))
