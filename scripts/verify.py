"""Search the learning rate of sampled networks and compare it with the rule's; run again to continue."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("verify")
