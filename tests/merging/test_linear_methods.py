"""Weight averaging, task arithmetic, Fisher and SLERP by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_cases import network, tuned

import merging
from merging.mean import bounded_mean


def state(*numbers, dtype=torch.float64):
    return {"w": torch.tensor(numbers, dtype=dtype)}


def values(result):
    return result.state["w"].tolist()


def test_averaging_by_hand():
    base, models = state(9, 9), [state(1, -2), state(2, 4), state(6, 1)]
    assert values(merging.weight_averaging(base, models)) == [3, 1]
    assert values(merging.weight_averaging(base, models, weights=[1, 0, 3])) == [4.75, 0.25]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_average_of_equal_models_is_that_model(dtype):
    """Seven times a float64 number is not always exact; seven times a shorter one is."""
    model = {"w": torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)}
    merged = merging.merge("averaging", model, [dict(model) for _ in range(7)], output_dtype=torch.float64)
    assert torch.equal(merged.state["w"], model["w"].double())


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], "expected one weight for each of the 2 models, got 1"),
        ([1, -1], "expected at least 0, got -1"),
        ([0, 0], "at least one weight above zero"),
        ([1, math.inf], "expected a finite number"),
    ],
)
def test_weights_out_of_range_are_refused(weights, message):
    with pytest.raises(ValueError, match=f"option 'weights': .*{message}"):
        merging.weight_averaging(state(0), [state(1), state(2)], weights=weights)


@settings(max_examples=200, deadline=None)
@given(
    value=st.floats(-1e300, 1e300),
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8),
)
def test_the_mean_of_equal_values_is_that_value(value, weights):
    same = [torch.tensor([value], dtype=torch.float64) for _ in weights]
    total = math.fsum(weights)
    assert bounded_mean(same, [weight / total for weight in weights]).item() == value
    if abs(value) < 1e299:
        assert bounded_mean(same).item() == value


def test_task_arithmetic_is_a_sum_not_a_mean():
    base, models = state(1, 1), [state(2, 1), state(4, -1)]
    assert values(merging.task_arithmetic(base, models, scaling_factor=0.5)) == [1 + 0.5 * (1 + 3), 1 + 0.5 * -2]
    assert values(merging.task_arithmetic(base, models)) == [pytest.approx(2.2), pytest.approx(0.4)]
    assert values(merging.task_arithmetic(base, models, scaling_factor=-1)) == [-3, 3]


def test_one_model_at_one_is_that_model():
    base, model = network(0), network(1)
    merged = merging.task_arithmetic(base, [model], scaling_factor=1.0).state
    assert all(torch.equal(merged[key], model[key]) for key in base if model[key].is_floating_point())


def test_arithmetic_is_exact_where_float16_would_round():
    base, model = state(1024.0, dtype=torch.float16), state(1025.0, dtype=torch.float16)
    assert values(merging.task_arithmetic(base, [model] * 3, scaling_factor=0.4)) == [1025]  # 1025.2
    assert values(merging.weight_averaging(base, [model, base, base], weights=[0.1, 0.1, 0.1])) == [1024]
    large = state(60_000.0, dtype=torch.float16)
    assert values(merging.weight_averaging(base, [large, large])) == [60_000]  # the sum does not fit float16


def test_a_result_that_does_not_fit_its_dtype_is_refused():
    base, model = state(0.0, dtype=torch.float16), state(60_000.0, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"'w': the merged value 120000 does not fit torch.float16"):
        merging.task_arithmetic(base, [model, model], scaling_factor=1.0)
    wide = merging.merge("task_arithmetic", base, [model, model], scaling_factor=1.0, output_dtype="float32")
    assert values(wide) == [120_000]


def test_fisher_by_hand():
    base, models = state(0, 0), [state(1, 1), state(4, 3)]
    fishers = [state(1, 3), state(2, 1)]
    result = merging.fisher_merging(base, models, fishers=fishers, normalize=False)
    assert values(result) == [(1 + 8) / 3, (3 + 3) / 4]
    weighted = merging.fisher_merging(base, models, fishers=fishers, normalize=False, weights=[3, 1])
    assert values(weighted) == [pytest.approx((3 + 8) / 5), pytest.approx((9 + 3) / 10)]


def test_fisher_mappings_of_any_scale_count_alike():
    base, models = state(0, 0), [state(1, 1), state(4, 3)]
    fishers = [state(3, 4), state(0, 1)]
    expected = [(0.6 * 1 + 1e-6 * 4) / (0.6 + 1e-6), (0.8 + 3) / 1.8]
    for scale in (1, 1000):
        scaled = [fishers[0], {"w": fishers[1]["w"] * scale}]
        result = merging.fisher_merging(base, models, fishers=scaled)
        assert values(result) == [pytest.approx(expected[0]), pytest.approx(expected[1])]
        assert result.provenance["fisher_norms"] == [5, scale]


def test_below_the_floor_fisher_is_the_plain_mean():
    base, models = state(0.0, 0.0), [state(1.0, 5.0), state(4.0, 5.0)]
    merged = merging.fisher_merging(base, models, fishers=[state(0, 1), state(0, 1)])
    assert values(merged) == [2.5, 5]


def test_statistics_without_fisher_take_the_mean_and_it_is_said():
    base = network(0)
    pair = [tuned(base, 1), tuned(base, 2)]
    fishers = [{k: t.abs() + 1 for k, t in base.items() if "running" not in k and "num" not in k} for _ in pair]
    result = merging.fisher_merging(base, pair, fishers=fishers)
    expected = (pair[0]["1.running_var"] + pair[1]["1.running_var"]) / 2
    torch.testing.assert_close(result.state["1.running_var"], expected)
    assert result.provenance["without_fisher"] == ["1.running_mean", "1.running_var"]


@pytest.mark.parametrize(
    ("fishers", "error", "message"),
    [
        ([state(1)], ValueError, "expected one mapping for each of the 2 models, got 1"),
        ("fishers.pt", TypeError, "option 'fishers': expected one mapping per model, got str"),
        ([state(1), {}], ValueError, "Fisher mapping 2: 'w' is missing"),
        ([state(1), state(1, 2)], ValueError, r"Fisher mapping 2: 'w' has shape \(2,\), expected \(1,\)"),
        ([state(1), state(-1)], ValueError, "Fisher mapping 2: 'w' holds -1; Fisher values are never negative"),
        ([state(1), state(0)], ValueError, "Fisher mapping 2: all Fisher values are 0"),
        ([state(1), state(math.nan)], ValueError, "Fisher mapping 2: 'w' holds nan"),
    ],
)
def test_fisher_mappings_that_do_not_fit_are_refused(fishers, error, message):
    with pytest.raises(error, match=message):
        merging.fisher_merging(state(0), [state(1), state(2)], fishers=fishers)


def test_slerp_by_hand():
    half = math.sin(math.pi / 4)
    assert values(merging.slerp_merging(state(0, 0), [state(1, 0), state(0, 1)])) == [
        pytest.approx(half),
        pytest.approx(half),
    ]
    third = merging.slerp_merging(state(0, 0), [state(2, 0), state(0, 4)], t=1 / 3)
    assert values(third) == [pytest.approx(2 * math.sin(math.pi / 3)), pytest.approx(4 * math.sin(math.pi / 6))]
    assert third.coefficients == {"w": pytest.approx(math.sin(math.pi / 3))}


def test_slerp_ends_are_the_models_and_lines_stay_lines():
    base, one, two = network(0), network(1), network(2)
    for t, model in ((0.0, one), (1.0, two)):
        merged = merging.slerp_merging(base, [one, two], t=t).state
        assert all(torch.equal(merged[key], model[key]) for key in base if model[key].is_floating_point())
    assert values(merging.slerp_merging(state(0, 0), [state(1, 1), state(3, 3)], t=0.25)) == [1.5, 1.5]
    assert values(merging.slerp_merging(state(0, 0), [state(0, 0), state(3, 3)], t=0.5)) == [1.5, 1.5]
    assert values(merging.slerp_merging(state(0.0), [state(1.0), state(-1.0)], t=0.25)) == [0.5]


def test_slerp_of_the_whole_model_has_one_angle_and_leaves_statistics_straight():
    base, one, two = network(0), tuned(network(0), 1, 2.0), tuned(network(0), 2, 2.0)
    result = merging.slerp_merging(base, [one, two], scope="model", t=0.25)
    own = {key: value for key, value in result.coefficients.items() if "running" not in key}
    assert len(set(own.values())) == 1
    flat = [torch.cat([m[key].double().reshape(-1) for key in own]) for m in (one, two)]
    angle = math.acos(float(torch.nn.functional.cosine_similarity(*flat, dim=0)))
    assert next(iter(own.values())) == pytest.approx(math.sin(0.75 * angle) / math.sin(angle))
    straight = 0.75 * one["1.running_var"] + 0.25 * two["1.running_var"]
    torch.testing.assert_close(result.state["1.running_var"], straight)


def test_slerp_takes_exactly_two():
    with pytest.raises(ValueError, match="exactly two models; got 1"):
        merging.slerp_merging(state(0), [state(1)])
