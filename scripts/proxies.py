"""How well cheap trainings stand for long ones, by recipe. Trains nothing."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("proxies")
