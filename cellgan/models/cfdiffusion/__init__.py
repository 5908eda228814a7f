"""cfDiffusion and scDiffusion."""
