"""Print what retraining would do and cost; starts and writes nothing."""

from nas_retrain.commands.command_line import run
from nas_retrain.commands.retrain import print_plan

if __name__ == "__main__":
    run(print_plan)
