"""Tell where a retraining stands."""

from nas_retrain.commands.command_line import run
from nas_retrain.commands.status import status

if __name__ == "__main__":
    run(status)
