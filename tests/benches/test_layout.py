"""A bench is named in its own folder alone, and what has no need of torch does not load it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from nas_retrain.benches import registry
from nas_retrain.commands.command_line import ROOT, compose

SOURCE = ROOT / "src" / "nas_retrain"
BENCHES = SOURCE / "benches"
FOLDERS = sorted(path.name for path in BENCHES.iterdir() if (path / "space.py").is_file())
CHOSEN = [["bench=201"], ["bench=mlp", "recipe=[grid_he]"], ["bench=cnn", "recipe=[grid_he]"], ["bench=sss"]]

OUTSIDE = sorted(
    path
    for folder in (SOURCE, ROOT / "scripts")
    for path in folder.rglob("*")
    if path.is_file() and path.suffix in (".py", ".html", ".css", ".js", ".md") and BENCHES not in path.parents
)
"""Every file of the package and the scripts but those of the benches."""


@cache
def benches() -> list[registry.Bench]:
    return [registry.of(compose(*chosen).bench) for chosen in CHOSEN]


@cache
def words() -> set[str]:
    """What names a bench in whatever text it stands: its folder, its title, and the names of its operations."""
    titles = {bench.title for bench in benches() if bench.title not in bench.names}
    drawings = [bench.drawing for bench in benches() if bench.published]
    operations = {option.name for drawing in drawings for option in drawing.options if "_" in option.name}
    return {name for name in titles | operations | set(FOLDERS) if name != "dags"} | {"DagS", "dags."}


@cache
def names() -> set[str]:
    """What names a bench as a whole string."""
    return {name for bench in benches() for name in bench.names}


def docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    """The strings that stand by themselves: those of modules, classes, functions and constants."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def texts(path: Path) -> Iterator[str]:
    """The strings, names and imports of a file of Python without its prose; any other file as a whole."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield source
        return
    tree = ast.parse(source)
    prose = set(docstrings(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield node.value
        elif isinstance(node, ast.ImportFrom):
            yield f"{node.module}."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (f"{alias.name}." for alias in node.names)
        elif isinstance(node, ast.Name):
            yield node.id


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_bench_is_named_outside_of_its_folder(path: Path) -> None:
    found = list(texts(path))
    assert [text[:200] for text in found if any(word in text for word in words())] == []
    assert [text for text in found if text in names()] == []


def test_the_search_finds_what_names_a_bench(tmp_path: Path) -> None:
    faults = {
        "imported.py": "from nas_retrain.benches.nas_bench_201 import space",
        "told.py": 'print(f"cells of NAS-Bench-201: {1}")',
        "compared.py": 'if bench.name == "201": pass',
        "page.html": "<style>--nor_conv_3x3: red</style>",
    }
    for name, text in faults.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(AssertionError):
            test_no_bench_is_named_outside_of_its_folder(tmp_path / name)
    (tmp_path / "prose.py").write_text('"""The paper trains NAS-Bench-201."""  # as does nas_bench_201\n')
    test_no_bench_is_named_outside_of_its_folder(tmp_path / "prose.py")


def modules() -> Iterator[str]:
    for folder in ("theory", "statistics"):
        for path in sorted((SOURCE / folder).rglob("*.py")):
            yield ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
    yield from (f"nas_retrain.benches.{folder}.space" for folder in FOLDERS)


def test_theory_spaces_and_statistics_load_no_torch() -> None:
    script = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    script += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *modules()], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
