"""Scaling rules through the same tests: a table in which each has a row."""
