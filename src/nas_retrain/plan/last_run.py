"""All settings of the last run of a results folder, for commands that are given the folder alone."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from nas_retrain.benches import registry
from nas_retrain.files.atomic import replacing
from nas_retrain.settings import Settings

NAME = "last_run.json"


def write(settings: Settings) -> None:
    """Keep the settings in the results folder. Raises NasRetrainError if it cannot be written."""
    with replacing(settings.results_dir / NAME) as temporary:
        temporary.write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")


def read(folder: Path) -> Settings | None:
    """The settings of the folder's last run, which lies where the folder lies now; None if it does not tell, or if
    another version wrote what this one cannot read."""
    try:
        content = (folder / NAME).read_bytes()
        found = Settings.model_validate_json(content, context={"benches": registry.settings_kinds()})
    except (OSError, ValidationError):
        return None
    return found.model_copy(update={"results_dir": folder})


def begun_beside(folder: Path) -> list[Path]:
    """The results folders of this one's benchmark and others, <here>/<bench>/<data set>, that hold runs; the latest
    first."""
    files = folder.parent.parent.glob(f"*/*/{NAME}")
    return [path.parent for path in sorted(files, key=lambda path: -path.stat().st_mtime)]
