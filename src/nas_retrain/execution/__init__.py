"""Running trainings, here or on SLURM."""
