"""Retrain NAS benchmarks with architecture-aware hyperparameters and compare the rankings."""

__version__ = "0.1.0.dev0"
