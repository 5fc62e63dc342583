"""The least time that a training step can take on a GPU of given figures, for each network."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("roofline")
