"""The study of the shape of the learning-rate rule: does a rate that follows it do better than one rate, and where?"""

from nas_retrain.studies.rule_shape.study import STUDY

__all__ = ["STUDY"]
