"""Compare rankings: two sources of accuracies, or the recipes of a results folder. Trains nothing."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("analyze")
