"""Own best learning rates in a table of trainings at several rates."""

from nas_retrain.studies.rate_table.study import STUDY

__all__ = ["STUDY"]
