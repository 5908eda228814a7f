"""CFGen."""
