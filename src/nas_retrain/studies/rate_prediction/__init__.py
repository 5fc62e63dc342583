"""Predicted learning rates against searched ones."""

from nas_retrain.studies.rate_prediction.study import STUDY

__all__ = ["STUDY"]
