"""LDVAE."""
