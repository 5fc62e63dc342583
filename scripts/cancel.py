"""Cancel the jobs of a retraining, and no others."""

from nas_retrain.commands.command_line import run
from nas_retrain.commands.retrain import cancel

if __name__ == "__main__":
    run(cancel)
