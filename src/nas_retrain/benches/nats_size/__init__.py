"""The size space of NATS-Bench: one cell, five widths."""
