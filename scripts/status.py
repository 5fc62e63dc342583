"""Tell where a retraining stands."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("status")
