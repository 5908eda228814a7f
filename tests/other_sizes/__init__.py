"""Makes files like those of ``tests/reference`` with other sizes, by our own networks.

They hold the keys that tests read, and nothing of what their numbers should be: parity
tests that pass on them take every size and name from the file.
"""
