"""Tell where a retraining stands."""

from nas_retrain.cli import run
from nas_retrain.pipeline import status

if __name__ == "__main__":
    run(status)
