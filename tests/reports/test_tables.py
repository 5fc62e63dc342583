"""Tables in reports: headers, and numbers with their intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from nas_retrain.reports.tables import as_markdown


def cells(table: pd.DataFrame, decimals: int | None = None) -> list[list[str]]:
    lines = [line.strip("|") for line in as_markdown(table, decimals).splitlines() if "--" not in line]
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
        ["100", "0.500 [0.250, 0.750]", "1.00 [-1.50, 1.50]", "[1, 3]", "0.0005", "yes"],
        ["50", "", "-0.25", "[2, 4]", "1", "no"],
    ]


@pytest.mark.parametrize("name", ["tau", "tau_of_all", "kendall_tau"])
def test_ends_belong_to_the_last_column_before_them_of_their_name(name: str) -> None:
    other = pd.DataFrame({"tau_of_others": [9.5], name: [1.5], "tau_low": [1.0], "tau_high": [2.0]})
    assert cells(other)[1] == ["9.50", "1.50 [1.00, 2.00]"]


def test_a_table_without_intervals_keeps_its_columns() -> None:
    table = pd.DataFrame({"a_low": [1.5], "b_high": [2.25], "name": ["x|y"], "many": [12345]})
    assert cells(table, 1) == [["a low", "b high", "name", "many"], ["1.5", "2.2", r"x\|y", "12,345"]]
    assert cells(table[:0]) == [["a low", "b high", "name", "many"]]
