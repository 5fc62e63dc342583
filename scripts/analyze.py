"""Compare rankings: two sources of accuracies, or the recipes of a results folder. Trains nothing."""

from nas_retrain.commands.command_line import run
from nas_retrain.commands.retrain import analyse

if __name__ == "__main__":
    run(analyse)
