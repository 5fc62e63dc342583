"""Functions of a user's own: found by where they are, with the state of their file; and every slip is one error."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from nas_retrain.errors import NasRetrainError
from nas_retrain.files import own_code

FUNCTION = "def mine():\n    return 1\n"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("name", ["plain.py", "with a blank.py", "ünï-\N{SNOWMAN}.py", "a.b.py", "1.py", "import.py"])
def test_a_file_of_any_name_is_found_with_its_state(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "my \N{GREEK SMALL LETTER LAMDA} rules"
    folder.mkdir()
    (folder / name).write_text(FUNCTION)
    function, checksum = own_code.loaded(f"{folder / name}:mine", "rule")
    assert function() == 1
    assert checksum == digest(FUNCTION)
    assert not (folder / "__pycache__").exists()


def test_a_process_reads_a_file_once(tmp_path: Path) -> None:
    path = tmp_path / "once.py"
    path.write_text(FUNCTION)
    first = own_code.loaded(f"{path}:mine", "rule")
    path.write_text(FUNCTION.replace("1", "2"))
    assert own_code.loaded(f"{path}:mine", "rule") == first
    assert first.function() == 1


def test_a_module_is_found_with_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "module_with_a_state.py").write_text(FUNCTION)
    assert own_code.loaded("module_with_a_state:mine", "rule").checksum == digest(FUNCTION)
    assert own_code.loaded("math:sqrt", "rule").function(9.0) == 3.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"def mine(:\n", "SyntaxError"),
        (b"\xff\xfe\x00", "SyntaxError"),
        (b"def mine():\x00\n", "SyntaxError"),
        (b"import sys\nsys.exit(3)\n", "SystemExit: 3"),
        (b"exit()\n", "SystemExit"),
        (b"1 / 0\n", "ZeroDivisionError"),
        (b"import no_such_module_at_all\n", "No module named 'no_such_module_at_all'"),
        (b"from __main__ import nothing_of_the_kind\n", "ImportError"),
        (b"def f(): f()\nf()\n", "RecursionError"),
        (b"mine = 3\n", "has no function mine"),
        (b"", "has no function mine"),
    ],
)
def test_a_file_that_is_no_module_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "broken.py"
    path.write_bytes(content)
    for _ in range(2):  # nothing of the first attempt is left
        with pytest.raises(NasRetrainError) as error:
            own_code.load(f"{path}:mine", "rule")
        assert str(error.value).startswith(f"rule={path}:mine: {path} ")
        assert said in str(error.value)


def test_a_folder_and_nothing_at_all_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    for name, said in (("folder.py", "IsADirectoryError"), ("nothing.py", "No such file")):
        with pytest.raises(NasRetrainError, match=said):
            own_code.load(f"{tmp_path / name}:mine", "rule")
