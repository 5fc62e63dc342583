"""Put every scaling rule through the same tests; run again to continue."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("scoreboard")
