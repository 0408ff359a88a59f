import pytest
import torch

from duet.losses.directional import directional_consistency


def tensors(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


CURRENT = tensors([2.0, 0.0, 5.0], [[1.0, 4.0]])
PREVIOUS = tensors([1.0, 1.0, 5.0], [[3.0, 1.0]])
DIRECTION = tensors([-1.0, -2.0, 7.0], [[2.0, 1.0]])
# u = [1, -1, 0] and [-2, 3]; u·v = [-1, 2, 0] and [-4, 3]


def test_scalar_granularity_by_hand():
    assert directional_consistency(CURRENT, PREVIOUS, DIRECTION, "scalar").item() == 5.0  # 1 + 4


def test_tensor_granularity_by_hand():
    # dot products 1 and -1: only the second is against the direction
    assert directional_consistency(CURRENT, PREVIOUS, DIRECTION, "tensor").item() == 1.0


def test_gradient_is_minus_the_direction_where_signs_conflict():
    current = [value.clone().requires_grad_() for value in CURRENT]
    directional_consistency(current, PREVIOUS, DIRECTION, "scalar").backward()
    assert current[0].grad.tolist() == [1.0, 0.0, 0.0]
    assert current[1].grad.tolist() == [[-2.0, 0.0]]


def test_no_update_gives_exactly_zero():
    current = [value.clone().requires_grad_() for value in PREVIOUS]
    loss = directional_consistency(current, PREVIOUS, DIRECTION)
    loss.backward()
    assert loss.item() == 0.0
    assert all(not value.grad.any() for value in current)


def test_agrees_with_a_plain_loop_on_random_tensors():
    generator = torch.Generator().manual_seed(0)
    sets = [[torch.randn(shape, generator=generator) for shape in ((3, 4), (5,), ())] for _ in range(3)]
    current, previous, direction = sets
    for granularity in ("scalar", "tensor"):
        expected = 0.0
        for c, p, v in zip(current, previous, direction):
            product = (c - p) * v
            expected += (torch.relu(-product).sum() if granularity == "scalar" else torch.relu(-product.sum())).item()
        assert directional_consistency(current, previous, direction, granularity).item() == pytest.approx(expected)


def test_nothing_to_run_over_is_refused():
    with pytest.raises(ValueError, match="no shared parameter"):
        directional_consistency([], [], [])
    with pytest.raises(ValueError, match="as many previous tensors"):
        directional_consistency(CURRENT, PREVIOUS[:1], DIRECTION)


def test_gradients_agree_with_finite_differences_and_can_be_taken_twice():
    generator = torch.Generator().manual_seed(1)
    sets = [
        [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 2), (4,))] for _ in range(3)
    ]
    for granularity in ("scalar", "tensor"):
        current = [value.clone().requires_grad_() for value in sets[0]]

        def loss(*values, granularity=granularity):
            return 0.3 * directional_consistency(values, sets[1], sets[2], granularity)

        assert torch.autograd.gradcheck(loss, current)
        value = loss(*current)
        first = torch.autograd.grad(value, current, retain_graph=True)
        second = torch.autograd.grad(value, current)
        assert all(torch.equal(one, two) for one, two in zip(first, second))


def test_inputs_are_left_alone():
    copies = [[value.clone() for value in values] for values in (CURRENT, PREVIOUS, DIRECTION)]
    current = [value.clone().requires_grad_() for value in CURRENT]
    directional_consistency(current, PREVIOUS, DIRECTION).backward()
    for values, kept in zip((current, PREVIOUS, DIRECTION), copies):
        assert all(torch.equal(value.detach(), copy) for value, copy in zip(values, kept))
