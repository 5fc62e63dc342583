"""The least time of a training step on a GPU of given figures: operations, bytes and kernels of each class."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("roofline")
