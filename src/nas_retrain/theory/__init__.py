"""A cell's graph and what follows from it alone; no torch, no pandas."""
