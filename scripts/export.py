"""Write the retrained accuracies for code that reads NAS-Bench-201, below the results folder. Trains nothing."""

from nas_retrain.commands.command_line import run
from nas_retrain.commands.export import export
from nas_retrain.settings import Settings


def main(settings: Settings) -> None:
    """Say where the export is."""
    print(f"{export(settings)}/README.md")


if __name__ == "__main__":
    run(main)
