"""Write the table of all cells of a benchmark: results/<bench>/cells.csv."""

from nas_retrain.commands.command_line import run_command

if __name__ == "__main__":
    run_command("cells")
