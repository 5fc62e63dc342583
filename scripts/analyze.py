"""Compare rankings: two sources of accuracies, or the recipes of a results folder. Trains nothing."""

from nas_retrain.cli import run
from nas_retrain.pipeline import analyse

if __name__ == "__main__":
    run(analyse)
