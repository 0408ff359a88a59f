"""TIES against a flat float64 reference and by hand; ``test_other_libraries`` has what others do instead."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from merging_cases import DTYPES, exact, families, ordinary

import merging
from merging import MergeSettings, blocks, order_statistics

WIDE = MergeSettings(output_dtype=torch.float64)


def flat_ties(base, models, density, scaling_factor=1.0, merge_function="mean"):
    """The authors' steps over one list of numbers per task: nothing but Python floats."""
    keys = sorted(base)
    origin = [number for key in keys for number in base[key].double().reshape(-1).tolist()]
    tasks = []
    for model in models:
        tuned = [number for key in keys for number in model[key].double().reshape(-1).tolist()]
        tasks.append([b - a for a, b in zip(origin, tuned)])
    size = len(origin)
    k = size - int(size * density)
    for task in tasks:
        threshold = sorted(abs(number) for number in task)[k - 1] if k else 0.0
        task[:] = [number if abs(number) >= threshold else 0.0 for number in task]
    signs = [sign(add(column)) for column in zip(*tasks)]
    majority = sign(sum(signs))
    signs = [own or majority for own in signs]
    merged = [a + scaling_factor * join(*entry, merge_function) for a, entry in zip(origin, zip(signs, zip(*tasks)))]
    result, position = {}, 0
    for key in keys:
        count = base[key].numel()
        part = torch.tensor(merged[position : position + count], dtype=torch.float64)
        result[key], position = part.reshape(base[key].shape), position + count
    return result


def sign(number):
    return (number > 0) - (number < 0)


def add(numbers):
    total = 0.0
    for number in numbers:
        total += number
    return total


def join(elected, column, merge_function):
    chosen = [number for number in column if (number > 0 if elected > 0 else number < 0)]
    if merge_function == "max":
        return max((abs(number) for number in chosen), default=0.0) * elected
    return add(chosen) / (max(len(chosen), 1) if merge_function == "mean" else 1)


def assert_equal(merged, expected):
    for key in expected:
        assert torch.equal(merged[key], expected[key]), key


densities = st.one_of(st.sampled_from([0.0, 1.0, 0.2, 0.5]), st.floats(0, 1))
values = st.one_of(exact, ordinary, st.floats(-1000, 1000))


@settings(max_examples=300, deadline=None)
@given(family=families(values, DTYPES, most=8), density=densities, function=st.sampled_from(["mean", "sum", "max"]))
def test_agrees_with_the_flat_reference_to_the_last_bit(family, density, function):
    base, models = family
    merged = merging.ties_merging(base, models, density=density, merge_function=function, settings=WIDE).state
    assert_equal(merged, flat_ties(base, models, density, merge_function=function))


@settings(max_examples=100, deadline=None)
@given(family=families(exact, DTYPES, most=8), density=densities, factor=st.sampled_from([0.3, 1.0, -2.0]))
def test_agrees_when_entries_cancel_across_blocks_and_bins_are_crowded(family, density, factor):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK", 2)
        patch.setattr(order_statistics, "_CROWD", 2)
        patch.setattr(order_statistics, "_WAITING", 2)
        base, models = family
        settings_ = MergeSettings(output_dtype=torch.float64, workers=2)
        merged = merging.ties_merging(base, models, density=density, scaling_factor=factor, settings=settings_).state
    assert_equal(merged, flat_ties(base, models, density, factor))


@pytest.mark.parametrize("models", [1, 8])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
def test_agrees_on_long_vectors(models, density):
    generator = torch.Generator().manual_seed(models)
    base = {"a.weight": torch.randn(300, 200, generator=generator), "b.weight": torch.randn(5_000, generator=generator)}
    tuned = [
        {key: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for key, tensor in base.items()}
        for _ in range(models)
    ]
    merged = merging.ties_merging(base, tuned, density=density, settings=WIDE).state
    assert_equal(merged, flat_ties(base, tuned, density))


@given(size=st.integers(1, 4), density=densities)
@example(size=1, density=0.0)
@settings(max_examples=30, deadline=None)
def test_task_vectors_of_zeros_return_the_base(size, density):
    base = {"w": torch.arange(size, dtype=torch.float64)}
    assert_equal(merging.ties_merging(base, [base, base], density=density).state, base)


def task(*numbers):
    return {"w": torch.tensor(numbers, dtype=torch.float64)}


def merged(*tasks, **options):
    base = {key: torch.zeros_like(tensor) for key, tensor in tasks[0].items()}
    result = merging.ties_merging(base, list(tasks), **options)
    return {key: tensor.tolist() for key, tensor in result.state.items()}


def test_trims_over_the_whole_vector_and_keeps_what_equals_the_threshold():
    # d = 5, density 0.4: k = 5 − 2 = 3, the third smallest magnitude is 2, and both twos stay.
    assert merged(task(1, -2, 2, 3, -1), density=0.4)["w"] == [0, -2, 2, 3, 0]
    # One threshold for both tensors: the second loses everything, though it would keep 0.3 by itself.
    two = {"a": torch.tensor([5.0, 4.0]), "b": torch.tensor([0.3, 0.1])}
    assert merged(two, density=0.5) == {"a": [5, 4], "b": [pytest.approx(0.3), 0]}
    assert merged(two, density=0.25) == {"a": [5, 4], "b": [0, 0]}
    assert merged(two, density=0.0) == {"a": [5, 0], "b": [0, 0]}


def test_elects_the_sign_of_the_sum_and_divides_by_those_who_agree():
    tasks = task(3, 1), task(-1, 1), task(-1, -4)
    assert merged(*tasks, density=1.0)["w"] == [3, -4]
    assert merged(task(3, 0), task(1, 0), task(-1, 2), density=1.0)["w"] == [2, 2]
    assert merged(task(3, 0), task(1, 0), task(-1, 2), density=1.0, merge_function="sum")["w"] == [4, 2]
    assert merged(task(3, 0), task(1, 0), task(-1, 2), density=1.0, merge_function="max")["w"] == [3, 2]


def test_a_sum_of_zero_takes_the_majority_sign_of_the_whole_vector():
    assert merged(task(2, 1, 1), task(-2, 1, 1), density=1.0)["w"] == [2, 1, 1]
    assert merged(task(2, -1, -1), task(-2, -1, -1), density=1.0)["w"] == [-2, -1, -1]
    assert merged(task(2, 1, 1), task(-3, 1, 1), task(1, 0, 0), density=1.0, merge_function="max")["w"] == [2, 1, 1]
    result = merging.ties_merging(task(0, 0, 0), [task(2, -1, -1), task(-2, -1, -1)], density=1.0)
    assert result.provenance["majority_sign"] == -1
    assert result.provenance["thresholds"] == [0, 0]


def test_the_majority_is_that_of_the_first_round(monkeypatch):
    """Blocks that are merged again do not count again: their signs would turn the majority over."""
    monkeypatch.setattr(blocks, "BLOCK", 3)
    open_block, others = [2, -1, -1], [1, 1, 1, 1, 1, 0]
    one = task(*open_block, *open_block, *others)
    two = task(-2, -1, -1, -2, -1, -1, *others)
    assert merged(one, two, density=1.0)["w"] == [2, -1, -1, 2, -1, -1, *others]


def test_without_a_majority_the_negative_values_stand_as_in_the_authors_code():
    assert merged(task(2.0), task(-2.0), density=1.0)["w"] == [-2]
    assert merged(task(2.0), task(-2.0), density=1.0, merge_function="max")["w"] == [0]


def test_density_counts_as_the_authors_do():
    """With k = d − int(d·density) one entry more than int(d·density) remains."""
    numbers = torch.arange(1.0, 11.0)
    kept = merging.ties_merging({"w": torch.zeros(10)}, [{"w": numbers}], density=0.2).state["w"]
    assert int((kept != 0).sum()) == 3
