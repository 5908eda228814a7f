"""scGAN and cscGAN."""
