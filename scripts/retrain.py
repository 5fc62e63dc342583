"""Plan, search the base rate, train what is missing and analyse; run again to continue."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("retrain")
