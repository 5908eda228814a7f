"""From noise to latents: what is learned (schedules) and how it is followed.

Time is 0 at the noise and 1 at the data. Nothing here knows a network: a velocity is
any function of latents and a time.
"""

from __future__ import annotations

from cellgan.sampling.flow import Solution, checked_solver, solve
from cellgan.sampling.guidance import (
    Branch,
    branch_codes,
    distinct_conditions,
    drop_covariates,
    guidance_branches,
    guided_prediction,
)
from cellgan.sampling.schedules import (
    PathPoint,
    conditional_path,
    draw_times,
    pair_noise,
    straight_path,
    stratified_times,
)

__all__ = [
    "Branch",
    "PathPoint",
    "Solution",
    "branch_codes",
    "checked_solver",
    "conditional_path",
    "distinct_conditions",
    "draw_times",
    "drop_covariates",
    "guidance_branches",
    "guided_prediction",
    "pair_noise",
    "solve",
    "straight_path",
    "stratified_times",
]
