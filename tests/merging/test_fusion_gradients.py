"""Merged weights and their gradients: against task arithmetic, against autograd, against finite differences."""

import copy

import pytest
import torch
from fusion_cases import MODULES, build, states, tasks

from merging import task_arithmetic
from merging.adaptation import UnlabelledTask, backward, merge_weights
from merging.coefficients import Coefficients
from merging.concrete import FixedMask, MaskDraw
from merging.differentiable import differentiable_merge, through_inner_step
from merging.family import evaluating, open_module_family
from merging.merger import MergeSettings

NAMES = list(MODULES)


def family(name, count=2, **options):
    module = build(name)
    return open_module_family(module, states(module, count), **options)


def logits_of(fam, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(base.shape, generator=generator) for key, base in fam.base.items()}


@pytest.mark.parametrize("name", NAMES)
def test_all_ones_mask_and_constant_coefficients_are_task_arithmetic(name):
    module = build(name)
    models = states(module, 3)
    fam = open_module_family(module, models)
    coefficients = Coefficients.filled(0.3, 3, list(fam.base), "tensor")
    expected = task_arithmetic(module.state_dict(), models, scaling_factor=0.3).state
    ones = FixedMask({key: torch.ones_like(base) for key, base in fam.base.items()})
    for mask in (None, ones):
        merged = merge_weights(fam, coefficients, mask)
        for key, leaf in merged.leaves.items():
            assert torch.allclose(leaf, expected[key], atol=1e-6), key


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", ["together", "per_task"])
def test_gradients_equal_those_of_autograd(name, mode):
    fam = family(name)
    logits = logits_of(fam)
    coefficients = Coefficients.filled(0.4, 2, list(fam.base), "tensor", trained=True)
    draw = MaskDraw(logits, seed=3)
    with evaluating(fam.module):
        merged = merge_weights(fam, coefficients, draw)
        by_hand = {}

        def consume(key, gradient):
            coefficients.add_gradient(key, merged.coefficient_gradient(key, gradient))
            by_hand[key] = merged.mask_gradient(key, gradient).clone()

        losses = backward(merged, tasks(name), consume, mode)
        leaves = {key: tensor.clone().requires_grad_() for key, tensor in logits.items()}
        values = coefficients.values.detach().clone().requires_grad_()
        weights = differentiable_merge(fam, values, coefficients.columns, leaves, draw)
        total = [task.loss(task.logits(fam.forward(weights), task.next_batch())) for task in tasks(name)]
        torch.stack(total).sum().backward()
    assert losses == pytest.approx([loss.item() for loss in total], rel=1e-5)
    assert set(by_hand) == set(fam.base)
    for key, gradient in by_hand.items():
        assert gradient.abs().max() > 0, key
        assert torch.allclose(gradient, leaves[key].grad, rtol=1e-3, atol=1e-7), key
    assert torch.allclose(coefficients.values.grad, values.grad, rtol=1e-4, atol=1e-7)


def _total(fam, coefficients, draw, made):
    merged = merge_weights(fam, coefficients, draw)
    with torch.no_grad():
        return sum(task.loss(task.logits(merged.forward, task.next_batch())).item() for task in made)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_against_finite_differences(name):
    fam = family(name)
    logits, step = logits_of(fam), 1e-2
    coefficients = Coefficients.filled(0.4, 2, list(fam.base), "tensor", trained=True)
    direction = logits_of(fam, seed=9)
    with evaluating(fam.module):
        merged = merge_weights(fam, coefficients, MaskDraw(logits))
        slope, found = 0.0, {}

        def consume(key, gradient):
            coefficients.add_gradient(key, merged.coefficient_gradient(key, gradient))
            found[key] = merged.mask_gradient(key, gradient).clone()

        backward(merged, tasks(name, batches=1), consume)
        slope = sum((found[key] * direction[key]).sum().item() for key in found)
        ends = [
            _total(
                fam,
                coefficients,
                MaskDraw({key: logits[key] + sign * step * direction[key] for key in logits}),
                tasks(name, batches=1),
            )
            for sign in (1, -1)
        ]
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=0.05, abs=1e-4)
        for column in range(2):
            moved = [coefficients.values.detach().clone() for _ in range(2)]
            moved[0][:, column] += step
            moved[1][:, column] -= step
            ends = [
                _total(fam, coefficients.replaced(values), MaskDraw(logits), tasks(name, batches=1)) for values in moved
            ]
            expected = coefficients.values.grad[:, column].sum().item()
            assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=0.05, abs=1e-4)


def test_the_second_order_gradient_against_finite_differences():
    fam = family("dense")
    start = Coefficients.filled(0.3, 2, list(fam.base), "task")
    logits, direction, step, rate = logits_of(fam), logits_of(fam, seed=9), 1e-2, 5.0
    with evaluating(fam.module):
        _, gradients = through_inner_step(fam, tasks("dense"), start, MaskDraw(logits), rate)
        slope = sum((gradients[key] * direction[key]).sum().item() for key in gradients)

        def upper(sign):
            moved = {key: logits[key] + sign * step * direction[key] for key in logits}
            return sum(through_inner_step(fam, tasks("dense"), start, MaskDraw(moved), rate)[0])

        assert (upper(1) - upper(-1)) / (2 * step) == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_that_was_given_is_changed(name):
    module = build(name)
    models = states(module, 2)
    before = copy.deepcopy([module.state_dict(), *models])
    module.train()
    fam = open_module_family(module, models)
    with evaluating(fam.module):
        merged = merge_weights(fam, Coefficients.filled(0.3, 2, list(fam.base)), MaskDraw(logits_of(fam)))
        backward(merged, tasks(name), lambda key, gradient: merged.mask_gradient(key, gradient))
    for old, new in zip(before, [module.state_dict(), *models]):
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert module.training and all(parameter.grad is None for parameter in module.parameters())


def test_heads_get_no_gradient():
    fam = family("dense")
    head = torch.nn.Linear(4, 3)
    made = [UnlabelledTask("a", lambda: torch.ones(2, 6), lambda forward, batch: head(forward(batch)))]
    merged = merge_weights(fam, Coefficients.filled(0.3, 2, list(fam.base)))
    backward(merged, made, lambda key, gradient: None)
    assert head.weight.grad is None


def test_batch_norm_statistics_are_the_mixture_and_tied_weights_count_once():
    fam = family("normed")
    module = build("normed")
    models = states(module, 2)
    expected = task_arithmetic(module.state_dict(), models, settings=MergeSettings(batch_norm="mixture")).state
    assert all(torch.allclose(fam.fixed[key], expected[key]) for key in ("1.running_mean", "1.running_var"))
    assert not any("running" in key for key in fam.base)
    assert (fam.fixed["1.running_var"] > 0).all() and set(fam.fixed) == {"1.running_mean", "1.running_var"}
    tied = family("tied")
    assert "out.weight" not in tied.base and "embed.weight" in tied.base


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_task_vectors_in_half_precision(dtype):
    full, half = family("dense"), family("dense", dtype=dtype)
    assert all(tensor.dtype == dtype for vector in half.vectors for tensor in vector.values())
    coefficients = Coefficients.filled(0.3, 2, list(full.base))
    one, other = merge_weights(full, coefficients).leaves, merge_weights(half, coefficients).leaves
    for key in one:
        assert torch.allclose(one[key], other[key], atol=3e-3) and not torch.equal(one[key], other[key])


def test_a_loss_that_depends_on_nothing_is_refused():
    fam = family("dense")
    merged = merge_weights(fam, Coefficients.filled(0.3, 2, list(fam.base)))
    blind = UnlabelledTask("blind", lambda: torch.ones(2, 6), lambda forward, batch: torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"'blind'.*does not depend"):
        backward(merged, [blind], lambda key, gradient: None)


def test_a_loss_that_is_not_finite_is_refused():
    fam = family("dense")
    merged = merge_weights(fam, Coefficients.filled(0.3, 2, list(fam.base)))
    bad = UnlabelledTask("bad", lambda: torch.full((2, 6), float("nan")), lambda forward, batch: forward(batch))
    with pytest.raises(ValueError, match=r"'bad'.*finite"):
        backward(merged, [bad], lambda key, gradient: None)
