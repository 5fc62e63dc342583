"""Cheap trainings in the place of long ones."""
