import pytest
import torch

from merging import sign_conflict_per_layer, sign_conflict_rate

U = {"a.weight": torch.tensor([1.0, -1.0, 0.0, 2.0]), "a.bias": torch.tensor([1.0]), "b.weight": torch.tensor([-3.0])}
V = {
    "a.weight": torch.tensor([-1.0, -1.0, 5.0, 2.0]),
    "a.bias": torch.tensor([-1e-30]),
    "b.weight": torch.tensor([4.0]),
}


def test_counts_opposite_signs_over_all_scalars():
    assert sign_conflict_rate(U, V) == 3 / 6
    assert sign_conflict_rate(V, U) == 3 / 6
    assert sign_conflict_rate(U, U) == 0


def test_per_layer():
    assert sign_conflict_per_layer(U, V) == {"a": 2 / 5, "b": 1.0}


def test_products_that_underflow_count():
    tiny = {"w": torch.tensor([1e-30])}
    assert sign_conflict_rate(tiny, {"w": torch.tensor([-1e-30])}) == 1


def test_only_shared_keys_count_and_nothing_gives_zero():
    assert sign_conflict_rate({**U, "c.weight": torch.ones(9)}, {**V, "d.weight": torch.ones(9)}) == 3 / 6
    assert sign_conflict_rate({}, {}) == 0.0
    assert sign_conflict_rate({"w": torch.zeros(0)}, {"w": torch.zeros(0)}) == 0.0
    assert sign_conflict_per_layer({"a.w": torch.zeros(0)}, {"a.w": torch.zeros(0)}) == {"a": 0.0}


def test_gradients_and_order_do_not_matter():
    turned = {key: torch.nn.Parameter(V[key]) for key in reversed(V)}
    assert sign_conflict_rate(U, turned) == 3 / 6


def test_updates_that_do_not_fit_are_refused():
    with pytest.raises(KeyError, match="the two updates share no key"):
        sign_conflict_rate(U, {"c": torch.ones(1)})
    with pytest.raises(ValueError, match=r"'a.bias' has shape \(1,\) in one update, \(2,\) in the other"):
        sign_conflict_rate(U, {"a.bias": torch.ones(2)})
