"""The model types one can name in ``model.type``, and what each can be told.

`MODEL_TYPES` is a literal table: name -> (configuration, "module:Class"). The class is
imported when a model is built, never before.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", strict=True)
Width = Annotated[int, Field(ge=1)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GanConfig:
    """scGAN and cscGAN: Wasserstein GAN with gradient penalty.

    cscGAN is conditioned on the label (cluster or cell type). scGAN is not: it accepts
    the two ``*_cond_type`` keys, which every parameter file of the reference carries,
    and neither has a part in it.
    """

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

    @property
    def is_conditional(self) -> bool:
        """Whether cells of a chosen label can be asked for."""
        return self.type == "cscGAN"


MODEL_TYPES = {
    "scGAN": (GanConfig, "cellgan.models.gan:Gan"),
    "cscGAN": (GanConfig, "cellgan.models.gan:Gan"),
}
