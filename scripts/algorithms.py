"""Replay search algorithms on two tables of accuracies: are they ranked alike, and which network to take?"""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("algorithms")
