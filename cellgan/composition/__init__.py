"""Composition studies: which cells make which corpus, and what models of them give."""
