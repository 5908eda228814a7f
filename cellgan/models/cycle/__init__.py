"""The cycle autoencoder."""
