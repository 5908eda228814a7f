"""Cells asked for, made by a trained model, and written."""
