"""Checks of options and names, with one sentence for whatever is wrong."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence


def number(name: str, value: object, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Return the value as a float, or refuse it.

    Args:
        name: option name, for the message.
        value: int or float; booleans and strings are refused.
        low: smallest value allowed.
        high: largest value allowed.

    Raises:
        TypeError: when the value is no number.
        ValueError: when it is not finite or outside ``[low, high]``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"option '{name}': expected a number, got {value!r}")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        finite = False
    if not finite:
        raise ValueError(f"option '{name}': expected a finite number, got {str(value)[:40]}")
    if not low <= value <= high:
        raise ValueError(f"option '{name}': expected {_interval(low, high)}, got {value!r}")
    return float(value)


def whole_number(name: str, value: object) -> None:
    """Refuse what is no whole number from 0 on.

    Raises:
        TypeError: when it is no whole number.
        ValueError: when it is negative.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"option '{name}': expected a whole number, got {value!r}")
    if value < 0:
        raise ValueError(f"option '{name}': expected at least 0, got {value}")


def folder_name(value: str) -> str:
    """Return the text if it can name a folder, else refuse it.

    Raises:
        ValueError: when it has a slash, begins with a dot or a space, or goes over several lines.
    """
    if not re.fullmatch(r"[^./\\\s][^/\\\n]*", value):
        raise ValueError(f"expected a name without slashes that does not begin with a dot, found {value!r}")
    return value


def first_line(error: object) -> str:
    """The first line of what an error says, or its kind when it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def choice(name: str, value: object, allowed: Sequence[str]) -> str:
    """Return the value if it is one of the allowed words, else refuse it naming the nearest.

    Raises:
        ValueError: when the value is not allowed.
    """
    if value not in allowed:
        raise ValueError(
            f"option '{name}': expected one of {', '.join(allowed)}, got {value!r}{nearest(value, allowed)}"
        )
    return str(value)


def known(what: str, name: str, names: Iterable[str]) -> None:
    """Refuse a name that is not among the known ones.

    Raises:
        ValueError: naming the nearest known name, or all of them when none is near.
    """
    names = list(names)
    if name not in names:
        hint = nearest(name, names) or f"; known: {', '.join(names)}"
        raise ValueError(f"unknown {what} '{name}'{hint}")


def nearest(value: object, names: Sequence[str]) -> str:
    """``; did you mean 'x'?`` when a name is near, else an empty text."""
    near = difflib.get_close_matches(str(value), names, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def convex_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights of the models, checked and divided by their sum; equal ones when ``None``.

    Raises:
        ValueError: when their number is wrong, one is negative, or all are zero.
    """
    if weights is None:
        return [1.0 / count] * count
    values = [number("weights", weight, low=0.0) for weight in weights]
    if len(values) != count:
        raise ValueError(f"option 'weights': expected one weight for each of the {count} models, got {len(values)}")
    try:
        total = math.fsum(values)
    except OverflowError:
        raise ValueError("option 'weights': their sum is larger than any float") from None
    if total <= 0.0:
        raise ValueError("option 'weights': expected at least one weight above zero")
    return [value / total for value in values]


def _interval(low: float, high: float) -> str:
    if low == -math.inf:
        return f"at most {high:g}"
    return f"at least {low:g}" if high == math.inf else f"a number from {low:g} to {high:g}"
