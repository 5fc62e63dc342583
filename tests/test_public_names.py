"""What `import nas_retrain` shows: the public names, imported when they are asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import nas_retrain


def test_completion_shows_what_is_public_and_all_of_it_is_there() -> None:
    assert set(dir(nas_retrain)) == {*nas_retrain.__all__, "__version__"}
    for name in nas_retrain.__all__:
        assert getattr(nas_retrain, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'ceilings'"):
        _ = nas_retrain.ceilings


def test_type_checkers_see_the_same_names() -> None:
    assert nas_retrain.__file__ is not None
    module = Path(nas_retrain.__file__)
    conditions = (node for node in ast.parse(module.read_text()).body if isinstance(node, ast.If))
    (typed,) = (node for node in conditions if ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {name.name: node.module for node in typed.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert set(seen) == set(nas_retrain.__all__)
    for name, home in seen.items():
        assert getattr(nas_retrain, name) is getattr(import_module(str(home)), name)
    assert (module.parent / "py.typed").exists()


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    heavy = "{'torch', 'pandas', 'numpy', 'hydra'} & set(sys.modules)"
    code = f"import sys, nas_retrain; nas_retrain.NasRetrainError; dir(nas_retrain); sys.exit(bool({heavy}))"
    subprocess.run([sys.executable, "-c", code], check=True)
