"""What messages show of text and values that come from outside."""

from __future__ import annotations

import ast
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.errors import printable, shown
from nas_retrain.files.safe_pickle import Pairs


@given(st.text(), st.integers(1, 30))
def test_text_is_shown_without_control_characters(text: str, longest: int) -> None:
    assert all(letter.isprintable() or letter == "\n" for letter in printable(text))
    part = printable(text, longest)
    assert part.isprintable()
    assert part.endswith("...") or len(text) <= longest
    assert printable(part) == part


@given(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text("aé\n\x1b", max_size=20))
def test_a_small_value_is_shown_as_python_writes_it(value: object) -> None:
    assert ast.literal_eval(shown(value)) == value or len(repr(value)) > 40


def test_what_would_be_endless_is_shown_in_a_few_characters() -> None:
    bomb: Any = "x"
    for _ in range(200):
        bomb = (bomb, bomb)
    for value in (bomb, [bomb], {"a": bomb}, Pairs([(bomb,)], [bomb]), 10**5000, "x" * 10**6):
        assert len(shown(value)) <= 80


def test_a_value_that_cannot_be_written_is_named_by_its_type() -> None:
    class Silent:
        def __repr__(self) -> str:
            raise RuntimeError

    assert "Silent" in shown(Silent())
