"""Each network's own best learning rate in a table of trainings at several rates. Trains nothing."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("own_rates")
