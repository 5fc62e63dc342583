"""Which trainings are to be run, with which learning rates."""
