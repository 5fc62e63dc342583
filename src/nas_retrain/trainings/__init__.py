"""Trainings that ended, as they are stored."""
