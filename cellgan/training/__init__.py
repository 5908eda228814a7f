"""The one training loop, and what goes on around it."""
