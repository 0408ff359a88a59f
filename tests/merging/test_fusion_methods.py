"""AdaMerging and the Concrete methods: limits that are known, losses that fall, inputs that are refused."""

import copy

import pytest
import torch
from fusion_cases import MODULES, build, states, tasks

from merging import task_arithmetic
from merging.adamerging import adamerging
from merging.concrete_merging import MaskSettings, concrete_adamerging, concrete_task_arithmetic
from merging.entropy import entropy_loss, first_token_entropy
from merging.family import open_module_family
from merging.merger import MergeSettings

NAMES = list(MODULES)
MIXTURE = MergeSettings(batch_norm="mixture")
QUICK = MaskSettings(steps=30, learning_rate=0.1)


def prepared(name, count=2):
    module = build(name)
    models = states(module, count)
    return module, models, open_module_family(module, models)


def close(first, second):
    assert list(first) == list(second)
    return all(torch.allclose(first[key].double(), second[key].double(), atol=1e-7) for key in first)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("granularity", ["task", "tensor", "layer"])
def test_adamerging_without_steps_is_task_arithmetic(name, granularity):
    module, models, family = prepared(name)
    done = adamerging(family, tasks(name), granularity=granularity, steps=0)
    assert close(done.result.state, task_arithmetic(module.state_dict(), models, settings=MIXTURE).state)
    held = adamerging(family, tasks(name), granularity=granularity, steps=4, learning_rate=0.0)
    assert close(held.result.state, done.result.state) and len(held.losses) == 4


@pytest.mark.parametrize("name", NAMES)
def test_concrete_with_a_mask_of_ones_is_task_arithmetic(name):
    module, models, family = prepared(name)
    expected = task_arithmetic(module.state_dict(), models, settings=MIXTURE).state
    for final_mask in ("concrete", "binary", "mean"):
        ones = MaskSettings(steps=0, initial_logits=200.0, final_mask=final_mask)
        assert close(concrete_task_arithmetic(family, tasks(name), settings=ones).result.state, expected)
        done = concrete_adamerging(family, tasks(name), settings=ones, coefficient_steps=0)
        assert close(done.result.state, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("granularity", ["task", "tensor"])
def test_adamerging_lowers_the_entropy(name, granularity):
    _, _, family = prepared(name)
    done = adamerging(family, tasks(name, batches=1), granularity=granularity, steps=40, learning_rate=0.02)
    assert sum(done.losses[-1]) < sum(done.losses[0]) - 1e-3
    assert len(done.losses) == 40 and set(done.phases) == {"coefficients"} and done.density is None


@pytest.mark.parametrize("name", NAMES)
def test_concrete_task_arithmetic_lowers_the_entropy(name):
    _, _, family = prepared(name)
    settings = MaskSettings(steps=60, learning_rate=0.1)
    done = concrete_task_arithmetic(family, tasks(name, batches=1), settings=settings)
    start, end = (sum(map(sum, part)) for part in (done.losses[:15], done.losses[-15:]))
    assert end < start
    assert all(0.0 < share < 1.0 for share in done.density.values())
    assert any(abs(share - 0.5) > 0.01 for share in done.density.values())


@pytest.mark.parametrize("second_order", [False, True])
def test_concrete_adamerging_trains_both_levels(second_order):
    _, _, family = prepared("dense")
    done = concrete_adamerging(
        family,
        tasks("dense"),
        settings=QUICK,
        second_order=second_order,
        coefficient_steps=20,
        coefficient_learning_rate=0.02,
    )
    assert done.phases == ["mask"] * 30 + ["coefficients"] * 20
    assert sum(done.losses[-1]) < sum(done.losses[0])
    assert any(value != [0.3, 0.3] for value in done.coefficients.values())


@pytest.mark.parametrize("name", NAMES)
def test_runs_are_reproducible_and_depend_on_the_seed(name):
    found = []
    for seed in (1, 1, 2):
        _, _, family = prepared(name)
        settings = MaskSettings(steps=5, learning_rate=0.1, seed=seed)
        done = concrete_adamerging(family, tasks(name), settings=settings, coefficient_steps=3)
        found.append(done.result.state)
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert any(not torch.equal(found[0][key], found[2][key]) for key in found[0])


@pytest.mark.parametrize("mode", ["together", "per_task"])
def test_both_ways_backward_give_the_same_model(mode):
    _, _, family = prepared("dense")
    settings = MaskSettings(steps=5, learning_rate=0.1, mode=mode)
    done = concrete_task_arithmetic(family, tasks("dense"), settings=settings)
    _, _, again = prepared("dense")
    other = concrete_task_arithmetic(again, tasks("dense"), settings=MaskSettings(steps=5, learning_rate=0.1))
    assert all(torch.allclose(done.result.state[key], other.result.state[key], atol=1e-5) for key in other.result.state)


@pytest.mark.parametrize("name", NAMES)
def test_models_are_not_changed(name):
    module, models, family = prepared(name)
    before = copy.deepcopy([module.state_dict(), *models])
    adamerging(family, tasks(name), steps=2)
    concrete_adamerging(family, tasks(name), settings=QUICK, coefficient_steps=2)
    for old, new in zip(before, [module.state_dict(), *models]):
        assert all(torch.equal(old[key], new[key]) for key in old)


def test_the_state_loads_into_the_module_and_tied_weights_stay_tied():
    module, _, family = prepared("tied")
    done = adamerging(family, tasks("tied"), steps=1)
    assert done.result.state["out.weight"].data_ptr() == done.result.state["embed.weight"].data_ptr()
    module.load_state_dict(done.result.state)


def test_observers_see_every_step_and_a_model_that_runs():
    _, _, family = prepared("dense")
    seen = []
    concrete_adamerging(
        family,
        tasks("dense"),
        settings=MaskSettings(steps=2),
        coefficient_steps=2,
        observe=lambda step: seen.append((step.phase, step.number, step.merge().forward(torch.ones(1, 6)).shape)),
    )
    assert [entry[:2] for entry in seen] == [("mask", 1), ("mask", 2), ("coefficients", 3), ("coefficients", 4)]
    assert all(shape == (1, 4) for *_, shape in seen)


def test_entropies_worked_by_hand():
    even, sure = torch.zeros(3, 4), torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    assert entropy_loss(even).item() == pytest.approx(1.3862944)  # log 4
    assert entropy_loss(sure).item() == pytest.approx(0.0, abs=1e-6)
    quarters = torch.tensor([[3.0, 1.0]]).log()
    assert entropy_loss(quarters).item() == pytest.approx(0.5623351)  # −¾ log ¾ − ¼ log ¼
    tokens = torch.stack([torch.cat([quarters, torch.tensor([[50.0, 0.0]])])])
    assert first_token_entropy(tokens).item() == pytest.approx(0.5623351)


@pytest.mark.parametrize("shape", [(0, 3), (3, 1), (3,), (2, 3, 4)])
def test_entropy_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match="class_logits"):
        entropy_loss(torch.zeros(shape))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": -1},
        {"temperature": 0.0},
        {"learning_rate": float("nan")},
        {"final_mask": "hard"},
        {"mode": "never"},
        {"seed": -1},
    ],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        MaskSettings(**options)


def test_bad_families_are_refused():
    module = build("dense")
    models = states(module, 2)
    with pytest.raises(ValueError, match=r"model 1: '0.weight' has shape \(8, 6\), expected \(9, 6\)"):
        open_module_family(module, [{**models[0], "0.weight": torch.zeros(8, 6)}])
    with pytest.raises(ValueError, match="is missing"):
        open_module_family(module, [{key: models[0][key] for key in list(models[0])[1:]}])
    broken = {key: tensor.clone() for key, tensor in models[1].items()}
    broken["2.bias"][1] = float("nan")
    with pytest.raises(ValueError, match=r"model 2: '2.bias' holds nan"):
        open_module_family(module, [models[0], broken])
    with pytest.raises(ValueError, match="nothing to merge"):
        open_module_family(module, [dict(module.state_dict())])
    with pytest.raises(ValueError, match="float32"):
        open_module_family(module.half(), models)


def test_parameters_that_no_model_changed_cost_nothing():
    module = build("dense")
    models = [{**state, "0.weight": module.state_dict()["0.weight"].clone()} for state in states(module, 2)]
    family = open_module_family(module, models)
    assert "0.weight" not in family.base
    done = adamerging(family, tasks("dense"), steps=2)
    assert torch.equal(done.result.state["0.weight"], module.state_dict()["0.weight"])
    assert module[0].weight.grad is None


def test_the_inner_step_matters_and_without_it_concrete_adamerging_is_concrete_task_arithmetic():
    states_of = {}
    for rate in (0.0, 1.0):
        _, _, family = prepared("dense")
        done = concrete_adamerging(
            family,
            tasks("dense", batches=1),
            granularity="task",
            settings=QUICK,
            inner_learning_rate=rate,
            coefficient_steps=0,
        )
        states_of[rate] = done.result.state
    _, _, family = prepared("dense")
    plain = concrete_task_arithmetic(family, tasks("dense", batches=1), settings=QUICK).result.state
    assert all(torch.allclose(states_of[0.0][key], plain[key], atol=1e-6) for key in plain)
    assert any(not torch.allclose(states_of[1.0][key], plain[key], atol=1e-4) for key in plain)


def test_the_first_order_step_is_the_second_order_one_without_its_last_term():
    found = []
    for second_order in (False, True):
        _, _, family = prepared("dense")
        settings = MaskSettings(steps=1, learning_rate=0.1)
        done = concrete_adamerging(
            family,
            tasks("dense"),
            settings=settings,
            inner_learning_rate=1e-4,
            second_order=second_order,
            coefficient_steps=0,
        )
        found.append(done.result.state)
    assert all(torch.allclose(found[0][key], found[1][key], atol=1e-3) for key in found[0])
