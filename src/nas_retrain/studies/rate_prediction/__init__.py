"""Predicted learning rates against searched ones."""
