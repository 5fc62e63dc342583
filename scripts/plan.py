"""Print what retraining would do and cost; starts and writes nothing."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("plan")
