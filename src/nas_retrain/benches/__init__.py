"""Benchmarks: their cells, graphs and networks."""
