"""Readers of raw files, one per format."""
