"""How good generated cells are: files compared with files, never a model loaded."""
