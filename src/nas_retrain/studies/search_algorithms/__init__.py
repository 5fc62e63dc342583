"""Search algorithms on two tables of one benchmark."""

from nas_retrain.studies.search_algorithms.study import STUDY

__all__ = ["STUDY"]
