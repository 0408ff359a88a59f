"""Every option of every method is checked in one way: type, bounds, words, and the nearest name for a misspelt one."""

import math

import pytest
import torch
from merging_cases import options_for

import merging
from merging.registry import METHODS, try_options

FREE = (-math.inf, math.inf)
SHARE = (0.0, 1.0)
POSITIVE = (1e-300, math.inf)
# (method, option) → smallest and largest value; a bound that is itself refused is left to the method's own test.
NUMBERS = {
    ("task_arithmetic", "scaling_factor"): FREE,
    ("ties", "density"): SHARE,
    ("ties", "scaling_factor"): FREE,
    ("dare", "drop_rate"): (0.0, 0.99),
    ("dare", "scaling_factor"): FREE,
    ("dare", "density"): SHARE,
    ("magmax", "scaling_factor"): FREE,
    ("fisher", "floor"): POSITIVE,
    ("emr", "scaling_factor"): FREE,
    ("slerp", "t"): SHARE,
    ("duet", "gamma"): SHARE,
    ("duet", "alpha_base"): SHARE,
    ("duet", "epsilon"): POSITIVE,
}
WORDS = {
    ("ties", "merge_function"): ("mean", "sum", "max"),
    ("ties", "scope"): ("model", "tensor"),
    ("dare", "merge_with"): ("task_arithmetic", "ties"),
    ("slerp", "scope"): ("tensor", "model"),
    ("duet", "scope"): ("layer", "tensor"),
}
# What has a shape of its own, tested with its method: lists of weights, seeds, an index, a switch.
OTHERS = {
    ("averaging", "weights"),
    ("fisher", "weights"),
    ("fisher", "normalize"),
    ("dare", "seed"),
    ("emr", "task"),
}
NEEDED = {("dare", "density"): {"merge_with": "ties"}}


def merged(method, option, value):
    base, models = {"w": torch.ones(3)}, [{"w": torch.tensor([1.0, 2.0, 0.5])}, {"w": torch.tensor([3.0, 1.0, 1.5])}]
    options = {**options_for(method, models), **NEEDED.get((method, option), {}), option: value}
    return merging.merge(method, base, models, **options)


def test_every_option_is_tested():
    every = {(method, option) for method, entry in merging.METHODS.items() for option in entry.defaults}
    assert every == {*NUMBERS, *WORDS, *OTHERS}


@pytest.mark.parametrize(("method", "option"), NUMBERS)
def test_numbers(method, option):
    low, high = NUMBERS[method, option]
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"option '{option}': expected a finite number, got {value}"):
            merged(method, option, value)
    for value in (True, "0.5", [0.5]):
        with pytest.raises(TypeError, match=f"option '{option}': expected a number, got "):
            merged(method, option, value)
    for bound, beyond in ((low, low - 0.1), (high, high + 0.1)):
        if math.isfinite(bound):
            assert merged(method, option, bound).state["w"].isfinite().all()
            with pytest.raises(ValueError, match=f"option '{option}': expected .*, got {beyond}"):
                merged(method, option, beyond)
        else:
            assert merged(method, option, math.copysign(2.0, bound)).state["w"].isfinite().all()


@pytest.mark.parametrize(("method", "option"), WORDS)
def test_words(method, option):
    allowed = WORDS[method, option]
    for word in allowed:
        assert merged(method, option, word).provenance["options"][option] == word
    with pytest.raises(ValueError, match=f"option '{option}': expected one of {', '.join(allowed)}, got 'zzz'"):
        merged(method, option, "zzz")
    with pytest.raises(ValueError, match=f"option '{option}'.*; did you mean '{allowed[0]}'"):
        merged(method, option, allowed[0] + "s")
    with pytest.raises(ValueError, match=f"option '{option}'"):
        merged(method, option, None)


@pytest.mark.parametrize("method", METHODS)
def test_defaults_can_be_tried_without_models(method):
    try_options(method, {})


@pytest.mark.parametrize(
    ("method", "options", "error"),
    [
        ("tise", {}, ValueError),
        ("ties", {"densty": 0.5}, ValueError),
        ("ties", {"density": 7}, ValueError),
        ("duet", {"gamma": True}, TypeError),
        ("averaging", {"workers": 0}, ValueError),
    ],
)
def test_wrong_options_are_told_without_models(method, options, error):
    with pytest.raises(error):
        try_options(method, options)
