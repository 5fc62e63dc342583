"""What is found in trainings, and the reports on it."""
