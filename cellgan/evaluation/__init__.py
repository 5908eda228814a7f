"""How good generated cells are: files compared with files, never a model loaded."""

from cellgan.evaluation.report import evaluate

__all__ = ["evaluate"]
