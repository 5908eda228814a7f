"""The two sides of a comparison: real and generated cells in one space."""
