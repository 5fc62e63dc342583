"""Check that trainings on this machine's GPU are right, and tune how they are launched there."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("gpu_check")
