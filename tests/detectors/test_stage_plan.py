import pytest
import torch
from torch import nn

from duet.config import DistillationSettings
from duet.detectors.stage_plan import AddedLosses, StagePlan


def added(value, model, **options):
    plan = StagePlan(distillation=DistillationSettings(), **options)
    losses = AddedLosses(plan, model, lambda outputs, images: torch.tensor(value), lambda images: 1.0)
    losses(None, torch.zeros(1, 3, 4, 4))
    return losses


@torch.no_grad()
def move(parameter):
    parameter += 1e-6


@pytest.mark.parametrize("value", [2e-5, -3e-7, 1e-2])
def test_a_student_that_stands_still_is_refused_however_large_the_rounding(value):
    losses = added(value, nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match=r"distill loss is switched on and for 50 steps nothing .* has moved"):
        losses.refuse_dead(50)


def test_distillation_that_is_exactly_zero_is_refused_even_where_the_student_moved():
    model = nn.Linear(1, 1)
    losses = added(0.0, model)
    move(model.weight)
    with pytest.raises(RuntimeError, match="distill loss is switched on and stayed exactly zero for 50 steps"):
        losses.refuse_dead(50)


@pytest.mark.parametrize("value", [1e-9, 1e-2])
def test_distillation_of_a_student_that_moved_is_not_refused_however_small(value):
    model = nn.Linear(1, 1)
    losses = added(value, model)
    move(model.bias)
    losses.refuse_dead(50)


def test_class_rows_that_are_held_do_not_count_as_moved():
    """Their old part stands still, and the new part is not distilled."""
    model = nn.Linear(1, 1)
    losses = added(1e-6, model, held_rows=("weight", "bias"))
    move(model.weight)
    with pytest.raises(RuntimeError, match="nothing of the model it holds on to has moved"):
        losses.refuse_dead(50)


NAMES = [f"backbone.{number}" for number in range(16)] + ["head.box", "head.rows"]


def test_learning_rates_decay_from_the_last_shared_layer_to_the_first():
    plan = StagePlan(
        shared_prefixes=("backbone.",), shared_lr_factor=0.5, layer_decay=0.01, rows=("head.rows",), row_lr_factor=5.0
    )
    rates = plan.learning_rates(NAMES)
    assert list(rates) == NAMES
    assert rates["backbone.15"] == rates["backbone.14"] == 0.5
    assert rates["backbone.0"] == rates["backbone.1"] == pytest.approx(0.005)
    assert rates["backbone.2"] / rates["backbone.0"] == pytest.approx(100 ** (1 / 7))
    assert (rates["head.box"], rates["head.rows"]) == (1.0, 5.0)


def test_learning_rates_of_the_towers_are_those_of_the_head_but_for_its_rows():
    plan = StagePlan(shared_prefixes=("backbone.",), tower_lr_factor=0.25, rows=("head.rows",), row_lr_factor=5.0)
    rates = plan.learning_rates(NAMES)
    assert (rates["backbone.3"], rates["head.box"], rates["head.rows"]) == (1.0, 0.25, 5.0)


def test_learning_rates_without_decay_are_one_for_all_that_is_shared():
    rates = StagePlan(shared_prefixes=("backbone.",), shared_lr_factor=0.3).learning_rates(NAMES)
    assert [rates[name] for name in NAMES] == [0.3] * 16 + [1.0, 1.0]


@pytest.mark.parametrize("options", [{"shared_lr_factor": 0.5}, {"layer_decay": 0.5}])
def test_a_shared_rate_that_no_parameter_has_is_refused(options):
    with pytest.raises(RuntimeError, match="no parameter starts with"):
        StagePlan(shared_prefixes=("neck.",), **options).learning_rates(NAMES)
