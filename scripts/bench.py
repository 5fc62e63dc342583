"""Measure training speed on this machine against the straightforward way of training, and what the benchmark costs."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("bench")
