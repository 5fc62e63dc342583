"""Each network's own best learning rate in a table of trainings at several rates. Trains nothing."""

from nas_retrain.commands.command_line import run
from nas_retrain.commands.own_rates import own_rates

if __name__ == "__main__":
    run(own_rates)
