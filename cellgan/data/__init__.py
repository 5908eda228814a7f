"""Processed data sets: names and sizes, records, batches, scales of expression."""
