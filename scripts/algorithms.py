"""Replay search algorithms on two tables of accuracies: are they ranked alike, and which network to take?"""

from nas_retrain.cli import run
from nas_retrain.pipeline import replay_algorithms

if __name__ == "__main__":
    run(replay_algorithms)
