"""How well cheap trainings stand for long ones, by recipe. Trains nothing."""

from nas_retrain.commands.command_line import run
from nas_retrain.commands.own_rates import proxies

if __name__ == "__main__":
    run(proxies)
