"""Each network's own best learning rate."""
