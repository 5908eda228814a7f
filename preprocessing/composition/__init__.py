"""The corpora of composition studies."""
