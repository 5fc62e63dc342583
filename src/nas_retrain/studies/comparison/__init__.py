"""Two rankings of one benchmark."""
