"""Cancel the jobs of a retraining, and no others."""

from nas_retrain.cli import run
from nas_retrain.pipeline import cancel

if __name__ == "__main__":
    run(cancel)
