"""MagMax, EMR and DARE by hand."""

import pytest
import torch
from merging_cases import network, tuned

import merging
from merging.blocks import BLOCK


def state(*numbers):
    return {"w": torch.tensor(numbers, dtype=torch.float64)}


def values(result):
    return result.state["w"].tolist()


def test_magmax_takes_the_largest_magnitude():
    base = state(1, 1, 1)
    models = [state(2, 1, -4), state(-3, 1.5, 3)]  # task vectors (1, 0, −5) and (−4, 0.5, 2)
    assert values(merging.magmax_merging(base, models)) == [-3, 1.5, -4]
    assert values(merging.magmax_merging(base, models, scaling_factor=0.5)) == [-1, 1.25, -1.5]


def test_magmax_prefers_the_positive_of_equal_magnitudes():
    for models in ([state(2), state(-2)], [state(-2), state(2)]):
        assert values(merging.magmax_merging(state(0), models)) == [2]


EMR = state(0, 0, 0), [state(3, 1, -1), state(-1, 2, 1), state(-1, 0, -1)]
# Sums 1, 3, −1: signs +, +, −; largest agreeing magnitudes 3, 2, 1.


def test_emr_elects_masks_and_rescales():
    parts = merging.emr_parts(*EMR)
    assert parts.unified["w"].tolist() == [3, 2, -1]
    assert [mask["w"].tolist() for mask in parts.masks] == [
        [True, True, True],
        [False, True, False],
        [False, False, True],
    ]
    assert parts.rescalers == (5 / 6, 4 / 2, 2 / 1)


def test_emr_takes_the_largest_of_those_that_agree():
    parts = merging.emr_parts(state(0), [state(3), state(-5), state(2.5)])
    assert parts.unified["w"].tolist() == [3]


def test_emr_merges_into_one_model_or_one_per_task():
    assert values(merging.emr_merging(*EMR)) == [3, 2, -1]
    assert values(merging.emr_merging(*EMR, scaling_factor=0.5)) == [1.5, 1, -0.5]
    assert values(merging.emr_merging(*EMR, task=0)) == [2.5, pytest.approx(5 / 3), pytest.approx(-5 / 6)]
    result = merging.emr_merging(*EMR, task=1)
    assert values(result) == [0, 4, 0]
    assert result.provenance["rescaler"] == 2


def test_emr_of_task_models_agrees_with_its_parts():
    base = network(0)
    models = [tuned(base, 1), tuned(base, 2)]
    parts = merging.emr_parts(base, models)
    for task in (0, 1):
        merged = merging.emr_merging(base, models, task=task).state
        for key, unified in parts.unified.items():
            expected = base[key].double() + parts.rescalers[task] * parts.masks[task][key] * unified
            torch.testing.assert_close(merged[key].double(), expected, rtol=1e-6, atol=1e-7)


def test_emr_ties_elect_the_negative_sign_and_no_change_needs_no_rescaling():
    parts = merging.emr_parts(state(0), [state(2), state(-2)])
    assert parts.unified["w"].tolist() == [-2]
    assert parts.rescalers == (1, 1)
    assert merging.emr_parts(state(0), [state(0)]).rescalers == (1,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": 3}, "option 'task': expected an index from 0 to 2, got 3"),
        ({"task": -1}, "option 'task'"),
        ({"task": 0, "scaling_factor": 2}, "option 'scaling_factor' must be 1 with 'task'"),
    ],
)
def test_emr_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        merging.emr_merging(*EMR, **options)


def family():
    base = {"a.weight": torch.zeros(300, 300), "b.weight": torch.zeros(1000)}
    return base, [{key: torch.full_like(tensor, value) for key, tensor in base.items()} for value in (1.0, 2.0)]


def test_dare_drops_the_asked_share_and_rescales_the_rest():
    base, models = family()
    merged = merging.dare_merging(base, models[:1], drop_rate=0.75, scaling_factor=1.0).state["a.weight"]
    assert set(merged.unique().tolist()) == {0.0, 4.0}
    assert (merged != 0).double().mean().item() == pytest.approx(0.25, abs=0.01)
    both = merging.dare_merging(base, models, drop_rate=0.75, scaling_factor=1.0).state["a.weight"]
    assert set(both.unique().tolist()) == {0.0, 4.0, 8.0, 12.0}  # the masks of the two models differ
    assert (both == 12).double().mean().item() == pytest.approx(0.0625, abs=0.01)


def test_dare_masks_depend_on_the_seed_and_the_place_alone():
    base, models = family()

    def first(seed):
        return merging.dare_merging(base, models[:1], seed=seed).state

    assert torch.equal(first(1)["a.weight"], first(1)["a.weight"])
    assert not torch.equal(first(1)["a.weight"], first(2)["a.weight"])
    assert not torch.equal(first(1)["a.weight"].view(-1)[:1000], first(1)["b.weight"])
    blocks = first(1)["a.weight"].view(-1)[: 2 * BLOCK].view(2, -1)
    assert not torch.equal(blocks[0], blocks[1])
    alone = merging.dare_merging({"b.weight": base["b.weight"]}, [{"b.weight": models[0]["b.weight"]}], seed=1).state
    assert torch.equal(first(1)["b.weight"], alone["b.weight"])
    turned = merging.dare_merging(base, models[::-1], seed=[6, 5]).state
    assert torch.equal(turned["a.weight"], merging.dare_merging(base, models, seed=5).state["a.weight"])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first(1)
    assert torch.equal(torch.get_rng_state(), before)


def test_dare_without_dropping_is_the_method_underneath():
    base = network(0)
    models = [tuned(base, 1), tuned(base, 2)]
    plain = merging.dare_merging(base, models, drop_rate=0.0).state
    ties = merging.dare_merging(base, models, drop_rate=0.0, merge_with="ties", density=0.5).state
    for key in base:
        assert torch.equal(plain[key], merging.task_arithmetic(base, models).state[key])
        assert torch.equal(ties[key], merging.ties_merging(base, models, density=0.5).state[key])


def test_dare_leaves_running_statistics_alone():
    base = network(0)
    models = [tuned(base, 1), tuned(base, 2)]
    merged = merging.dare_merging(base, models, drop_rate=0.9, scaling_factor=0.5).state
    expected = merging.task_arithmetic(base, models, scaling_factor=0.5).state
    for key in ("1.running_mean", "1.running_var"):
        assert torch.equal(merged[key], expected[key])


def test_dare_with_ties_trims_what_is_left():
    base, models = {"w": torch.zeros(1000)}, [{"w": torch.arange(1.0, 1001.0)}]
    merged = merging.dare_merging(base, models, drop_rate=0.5, merge_with="ties", density=0.1, seed=3).state["w"]
    kept = merging.dare_merging(base, models, drop_rate=0.5, scaling_factor=1.0, seed=3).state["w"]
    limit = kept.sort().values[1000 - 100 - 1]
    assert torch.equal(merged, torch.where(kept >= limit, kept, 0.0))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"drop_rate": 1.0}, ValueError, "option 'drop_rate': expected less than 1"),
        ({"density": 0.2}, ValueError, "option 'density' belongs to merge_with='ties'"),
        ({"seed": [1]}, ValueError, "option 'seed': expected one number for each of the 2 models, got 1"),
        ({"seed": 0.5}, TypeError, "option 'seed': expected a whole number or one per model, got 0.5"),
        ({"seed": True}, TypeError, "option 'seed'"),
    ],
)
def test_dare_options_that_cannot_be_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        merging.dare_merging(*family(), **options)
