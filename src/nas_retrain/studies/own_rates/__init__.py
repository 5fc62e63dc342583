"""Each network's own best learning rate."""

from nas_retrain.studies.own_rates.study import STUDY

__all__ = ["STUDY"]
