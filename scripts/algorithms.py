"""Replay search algorithms on two tables of accuracies: are they ranked alike, and which network to take?"""

from nas_retrain.commands.command_line import run
from nas_retrain.commands.retrain import replay_algorithms

if __name__ == "__main__":
    run(replay_algorithms)
