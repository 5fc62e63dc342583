"""Tell where a retraining stands."""

from nas_retrain.cli import run
from nas_retrain.status import status

if __name__ == "__main__":
    run(status)
