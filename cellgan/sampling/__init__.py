"""From noise to latents: what is learned (schedules) and how it is followed.

A flow's time is 0 at the noise and 1 at the data; a diffusion's steps count from the
cleanest latent to the noisiest. Nothing here knows a network: a velocity is any
function of latents and a time, a denoiser one of latents and a step.
"""

from __future__ import annotations

from cellgan.sampling.diffusion import Sampler, add_noise
from cellgan.sampling.flow import Solution, checked_solver, solve
from cellgan.sampling.flow_paths import (
    PathPoint,
    conditional_path,
    draw_times,
    pair_noise,
    straight_path,
    stratified_times,
)
from cellgan.sampling.guidance import (
    Branch,
    branch_codes,
    drop_covariates,
    drop_each_covariate,
    guidance_branches,
    nested_branches,
)
from cellgan.sampling.noise_schedules import (
    NoiseSchedule,
    cosine_betas,
    even_full_steps,
    linear_betas,
    spaced_steps,
    uneven_full_steps,
)

__all__ = [
    "Branch",
    "NoiseSchedule",
    "PathPoint",
    "Sampler",
    "Solution",
    "add_noise",
    "branch_codes",
    "checked_solver",
    "conditional_path",
    "cosine_betas",
    "draw_times",
    "drop_covariates",
    "drop_each_covariate",
    "even_full_steps",
    "guidance_branches",
    "linear_betas",
    "nested_branches",
    "pair_noise",
    "solve",
    "spaced_steps",
    "straight_path",
    "stratified_times",
    "uneven_full_steps",
]
