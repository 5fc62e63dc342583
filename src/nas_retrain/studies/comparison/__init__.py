"""Two rankings of one benchmark."""

from nas_retrain.studies.comparison.study import STUDY

__all__ = ["STUDY"]
