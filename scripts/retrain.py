"""Plan, search the base rate, train what is missing and analyse; run again to continue."""

from nas_retrain.cli import run
from nas_retrain.pipeline import retrain

if __name__ == "__main__":
    run(retrain)
