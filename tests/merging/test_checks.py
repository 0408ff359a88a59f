"""Checks of options: true and false are no numbers."""

from typing import Any

import pytest

from merging.checks import refuse_switches


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, True),
        (float | None, False),
        (tuple[int, int], [True, 1200]),
        (tuple[tuple[float, ...], ...] | None, [[1.0], [2.0, False]]),
        (dict[str, float], {"a": True}),
    ],
)
def test_switches_are_no_numbers_however_deep(annotation, value):
    with pytest.raises(ValueError, match="expected a number"):
        refuse_switches(annotation, value)


@pytest.mark.parametrize("annotation", [bool, bool | None, int | bool, dict[str, Any], Any, str])
def test_switches_stay_where_they_belong(annotation):
    for value in (True, [True], {"a": False}):
        assert refuse_switches(annotation, value) is value
