"""Accuracies of a benchmark's cells, rankings of them and what noise does to these; no torch."""
