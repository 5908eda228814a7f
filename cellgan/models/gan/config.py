"""What scGAN and cscGAN can be told."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from cellgan.config.base import (
    STRICT,
    ModelConfig,
    Width,
    Widths,
)
from cellgan.data.manifest import DatasetManifest
from cellgan.errors import ConfigError


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GanConfig(ModelConfig):
    """scGAN and cscGAN: Wasserstein GAN with gradient penalty.

    cscGAN is conditioned on the label (cluster or cell type). scGAN is not: it accepts
    the two ``*_cond_type`` keys, which every parameter file of the reference carries,
    and neither has a part in it.
    """

    STAGES = ("gan",)
    TRAINING_KEYS = frozenset({"critic_iters"})
    GENERATION_KEYS = frozenset({"counts"})

    type: Literal["scGAN", "cscGAN"] = "cscGAN"
    latent_dim: Width = 128
    output_LSN: Width | Literal["scale"] | None = "scale"
    """Library size of generated cells; ``"scale"`` takes that of ``input_ds.scale``,
    null leaves the last layer unscaled."""
    critic_layers: Widths = (1024, 512, 256)
    gen_layers: Widths = (256, 512, 1024)
    critic_cond_type: Literal["proj", "old_proj"] = "proj"
    """``"proj"``: a linear read-out per label, what the reference runs by this name;
    ``"old_proj"``: Miyato and Koyama's projection with one shared read-out."""
    gen_cond_type: Literal["batchnorm", "layernorm", "none"] = "batchnorm"
    """Which normalisation carries the label; ``"none"`` normalises nothing and the
    generator ignores the label."""
    lambd: Annotated[float, Field(ge=0)] = 10.0
    """Weight of the gradient penalty."""

    def conditions(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return the label, or nothing for scGAN."""
        return (manifest.label,) if self.type == "cscGAN" else ()

    @property
    def rescales_cells(self) -> bool:
        """Whether the last layer scales cells to `output_LSN`."""
        return self.output_LSN is not None

    def settled(self, input_ds: Any, where: str) -> GanConfig:
        """Give ``output_LSN`` its number; refuse one that differs from the scale."""
        scale = input_ds.target_library_size
        if self.output_LSN == "scale":
            return dataclasses.replace(self, output_LSN=scale)
        if self.output_LSN not in (None, scale):
            msg = (
                f"{where}.model: output_LSN is {self.output_LSN} but input_ds.scale is "
                f'"{input_ds.scale}"; the critic would tell the two apart by their '
                f"totals.\n    Set output_LSN to {scale}, or leave it out."
            )
            raise ConfigError(msg)
        return self
