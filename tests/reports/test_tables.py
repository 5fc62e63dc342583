"""Tables in reports: headers, and numbers with their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.reports.tables import as_markdown, number_text, p_text, with_interval


def cells(table: pd.DataFrame) -> list[list[str]]:
    lines = [line.strip("|") for line in as_markdown(table).splitlines() if "--" not in line]
    return [[cell.strip() for cell in line.split(" | ")] for line in lines]


def test_a_number_and_its_interval_are_one_column_with_a_header_of_words() -> None:
    table = pd.DataFrame(
        {
            "top_percent": [100, 50],
            "kendall_tau": [0.5, np.nan],
            "tau_low": [0.25, np.nan],
            "tau_high": [0.75, np.nan],
            "beyond_noise": [1.0, -0.25],
            "beyond_low": [-1.5, np.nan],
            "beyond_high": [1.5, np.nan],
            "again_low": [1, 2],
            "again_high": [3, 4],
            "p_holm": [0.0005, 1.0],
            "reversed": [True, False],
        }
    )
    assert cells(table) == [
        ["top K %", "tau [95 %]", "beyond noise [95 %]", "again [95 %]", "p, adjusted", "reversed"],
        ["100", "0.50 [0.25, 0.75]", "1.00 [-1.50, 1.50]", "[1, 3]", "0.0005", "yes"],
        ["50", "", "-0.25", "[2, 4]", "1", "no"],
    ]


@pytest.mark.parametrize("name", ["tau", "tau_of_all", "kendall_tau"])
def test_ends_belong_to_the_last_column_before_them_of_their_name(name: str) -> None:
    other = pd.DataFrame({"tau_of_others": [9.5], name: [1.5], "tau_low": [1.0], "tau_high": [2.0]})
    assert cells(other)[1] == ["9.50", "1.50 [1.00, 2.00]"]


def test_a_table_without_intervals_keeps_its_columns() -> None:
    table = pd.DataFrame({"a_low": [1.5], "b_high": [2.25], "name": ["x|y"], "many": [12345]})
    assert cells(table) == [["a low", "b high", "name", "many"], ["1.50", "2.25", r"x\|y", "12,345"]]
    assert cells(table[:0]) == [["a low", "b high", "name", "many"]]


def column(*values: float) -> list[str]:
    return [row[0] for row in cells(pd.DataFrame({"value": values}))[1:]]


def test_numbers_of_all_sizes_can_be_told_apart() -> None:
    assert column(0.01, 0.01468, 0.1, 1.0) == ["0.01", "0.01468", "0.1", "1"]  # learning rates
    assert column(0.0001, 0.0005) == ["0.0001", "0.0005"]  # weight decays
    assert column(0.0, 0.0002, 0.6129) == ["0", "0.0002", "0.6129"]  # shares
    assert column(0.0036, 0.0102) == ["0.0036", "0.0102"]  # standard errors
    assert column(71.25, 9.5) == ["71.25", "9.50"]
    assert column(0.5, -0.25) == ["0.500", "-0.250"]
    assert column(0.5, -0.0001) == ["0.500", "-0.0001"]
    assert column(15625.5, 3.25) == ["15630", "3.25"]
    assert [p_text(value) for value in (0.0496, 0.0504, 0.00001, np.nan)] == ["0.0496", "0.0504", "1e-05", ""]


def test_intervals_are_told_to_two_digits_of_their_width() -> None:
    def shown(value: float, half: float) -> str:
        return cells(pd.DataFrame({"gain": [value], "gain_low": [value - half], "gain_high": [value + half]}))[1][0]

    assert shown(0.5, 0.04) == "0.500 [0.460, 0.540]"
    assert shown(0.5, 0.4) == "0.50 [0.10, 0.90]"
    assert shown(71.5, 4.0) == "71.50 [67.50, 75.50]"
    assert shown(0.02, 0.0197) == "0.020 [0.0003, 0.040]"
    assert shown(0.0, 0.0) == "0 [0, 0]"


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([".2f", "+.2f", ".3f", "+.3f", ",.0f", ".4g"]))
def test_a_number_that_is_not_zero_never_looks_like_it(value: float, form: str) -> None:
    text = number_text(value, form)
    assert (float(text.replace(",", "")) == 0) == (value == 0)
    assert "e" not in text
    if value:
        assert text.startswith("-") == (value < 0)
        assert float(text.replace(",", "")) == pytest.approx(value, rel=0.1, abs=0.5 if form == ",.0f" else 0.01)


def test_sentences_keep_the_sign_of_an_end() -> None:
    assert with_interval(0.1, 0.0004, 0.2, "+.2f") == "+0.10 [+0.0004, +0.20]"
    assert with_interval(0.1, -0.0004, 0.2) == "0.10 [-0.0004, 0.20]"
