"""Cheap trainings in the place of long ones."""

from nas_retrain.studies.proxies.study import STUDY

__all__ = ["STUDY"]
