"""Search algorithms on two tables of one benchmark."""
