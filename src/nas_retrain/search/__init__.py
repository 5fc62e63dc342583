"""Search algorithms replayed on tables of accuracies, and which cell to take from such a table. No torch."""
