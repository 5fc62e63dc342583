"""Check that trainings on this machine's GPU are right, and tune how they are launched there."""

from nas_retrain.commands.command_line import run
from nas_retrain.commands.gpu_check import gpu_check

if __name__ == "__main__":
    run(gpu_check)
