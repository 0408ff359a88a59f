"""The Concrete mask: its limits, its distribution, and that it can be drawn again."""

import pytest
import torch

from merging.concrete import (
    MASK_BLOCK,
    FixedMask,
    MaskDraw,
    concrete_mask,
    draw_noise,
    fix_mask,
    logistic_noise,
    mask_density,
    rescaled,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_worked_by_hand():
    # log u − log(1 − u) = log 3 at u = 3/4; (log 3 + 0) / 0.5 = log 9; σ = 0.9.
    noise = torch.tensor([3.0, 1.0, 1 / 3]).log()
    mask = concrete_mask(torch.zeros(3), temperature=0.5, noise=noise)
    assert torch.allclose(mask, torch.tensor([0.9, 0.5, 0.1]))


def test_temperature_to_zero_is_the_bernoulli_mask():
    logits = torch.linspace(-3, 3, 2001)
    cold = concrete_mask(logits, temperature=1e-6, generator=generator(3))
    binary = concrete_mask(logits, binary=True, generator=generator(3))
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(cold.round(), binary)
    assert (cold - binary).abs().mean() < 1e-4


@pytest.mark.parametrize("logit", [-2.0, 0.0, 1.5])
def test_mean_of_samples_is_sigmoid(logit):
    count = 200_000
    mask = concrete_mask(torch.full((count,), logit), binary=True, generator=generator(1))
    expected = torch.sigmoid(torch.tensor(logit)).item()
    assert abs(mask.mean().item() - expected) < 4 * (expected * (1 - expected) / count) ** 0.5
    relaxed = concrete_mask(torch.full((count,), logit), temperature=0.5, generator=generator(1))
    assert abs((relaxed > 0.5).float().mean().item() - expected) < 4 * (expected * (1 - expected) / count) ** 0.5


def test_sampling_is_reproducible_and_moves():
    logits = torch.zeros(1000)
    first = concrete_mask(logits, generator=generator(7))
    assert torch.equal(first, concrete_mask(logits, generator=generator(7)))
    assert not torch.equal(first, concrete_mask(logits, generator=generator(8)))


def test_noise_is_finite_where_the_uniform_number_is_zero(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **kwargs: torch.zeros(shape))
    assert logistic_noise((4,)).isfinite().all()


def test_gradient_against_finite_differences():
    noise = logistic_noise((20,), generator()).double()
    logits = torch.randn(20, generator=generator(1), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rescaled(concrete_mask(x, temperature=0.5, noise=noise)), (logits,))


def test_rescaled_keeps_the_mean_at_one_and_zero_at_zero():
    mask = torch.rand(3, 4, generator=generator())
    assert rescaled(mask).mean().item() == pytest.approx(1.0)
    assert torch.equal(rescaled(torch.ones(5)), torch.ones(5))
    assert torch.equal(rescaled(torch.zeros(5)), torch.zeros(5))


def test_a_draw_does_not_depend_on_the_order_and_changes_with_key_draw_and_seed():
    size = MASK_BLOCK + 100
    logits = {"a": torch.zeros(size), "b": torch.zeros(size)}
    draw = MaskDraw(logits, seed=4)
    late = draw.block("a", MASK_BLOCK, size)
    early = draw.block("a", 0, MASK_BLOCK)
    assert torch.equal(torch.cat([early, late]), torch.sigmoid(draw_noise(draw, "a", size) / 0.5))
    assert not torch.equal(early[:100], late)
    others = [MaskDraw(logits, seed=5).block("a", 0, 50), MaskDraw(logits, seed=4, draw=1).block("a", 0, 50)]
    for other in (*others, draw.block("b", 0, 50)):
        assert not torch.equal(draw.block("a", 0, 50), other)


def test_kinds_of_a_draw():
    logits = {"a": torch.tensor([-30.0, 0.0, 30.0])}
    assert MaskDraw(logits, kind="mean").block("a", 0, 3).tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert MaskDraw(logits, kind="binary").block("a", 0, 3)[[0, 2]].tolist() == [0.0, 1.0]
    fixed = fix_mask(MaskDraw(logits, kind="mean"))
    assert fixed.tensors["a"].tolist() == pytest.approx([0.0, 1.0, 2.0])
    block = fixed.block("a", 1, 3)
    block.zero_()
    assert isinstance(fixed, FixedMask) and fixed.tensors["a"][2].item() == pytest.approx(2.0)


def test_density():
    assert mask_density({"a": torch.zeros(4), "b": torch.full((2,), 50.0)}) == {"a": 0.5, "b": 1.0}


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_bad_temperatures_are_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        concrete_mask(torch.zeros(2), temperature=temperature)
