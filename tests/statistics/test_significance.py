"""Adjustment for several tests."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.statistics.significance import SIGNIFICANT, holm


def test_holm_is_the_textbook_example() -> None:
    adjusted = holm(np.array([0.01, np.nan, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, np.nan, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8).map(np.array))
def test_what_is_significant_after_holm_is_what_his_steps_reject(p_values: np.ndarray) -> None:
    """The smallest is tested at the level over their number, the next at the level over one less, up to the first that
    is not rejected."""
    rejected = np.zeros(len(p_values), dtype=bool)
    for step, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] * (len(p_values) - step) > SIGNIFICANT:
            break
        rejected[place] = True
    np.testing.assert_array_equal(holm(p_values) <= SIGNIFICANT, rejected)
