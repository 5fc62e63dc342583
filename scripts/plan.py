"""Print what retraining would do and cost; starts and writes nothing."""

from nas_retrain.cli import run
from nas_retrain.pipeline import print_plan

if __name__ == "__main__":
    run(print_plan)
