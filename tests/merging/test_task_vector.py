import pytest
import torch
from merging_cases import network, tuned

import merging


def test_a_task_vector_is_the_difference_of_floating_point_tensors():
    base = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(1)}
    model = {"n": torch.tensor(5), "w": torch.tensor([4.0, 1.0])}
    vector = merging.task_vector(base, model)
    assert list(vector) == ["w"]
    assert vector["w"].tolist() == [3, -1]
    moved = merging.apply_task_vector(base, vector, scaling_factor=2.0)
    assert moved["w"].tolist() == [7, 0]
    assert moved["n"].item() == 1
    assert moved["n"] is not base["n"]


def test_the_difference_of_half_precision_is_float32():
    base = {"w": torch.tensor([1024.0], dtype=torch.bfloat16)}
    vector = merging.task_vector(base, {"w": torch.tensor([1.5], dtype=torch.bfloat16)})
    assert vector["w"].dtype == torch.float32
    assert vector["w"].item() == -1022.5
    assert merging.apply_task_vector(base, vector)["w"].dtype == torch.bfloat16
    wide = {"w": torch.tensor([1.0], dtype=torch.float64)}
    assert merging.task_vector(base, wide)["w"].dtype == torch.float64


def test_applying_it_undoes_it():
    base = network(0)
    model = tuned(base, 1)
    moved = merging.apply_task_vector(base, merging.task_vector(base, model))
    for key in base:
        if base[key].is_floating_point():
            torch.testing.assert_close(moved[key], model[key])


@pytest.mark.parametrize(
    ("base", "model", "error", "message"),
    [
        ({"a": torch.ones(1)}, {}, KeyError, "model lacks the floating-point tensor 'a'"),
        ({}, {"a": torch.ones(1), "b": torch.ones(1)}, KeyError, "base lacks the floating-point tensor 'a' and 1 more"),
        ({"a": torch.ones(1)}, {"a": torch.ones(2)}, ValueError, r"'a' has shape \(1,\) in the base and \(2,\)"),
    ],
)
def test_models_that_differ_are_refused(base, model, error, message):
    with pytest.raises(error, match=message):
        merging.task_vector(base, model)


def test_a_vector_of_something_else_is_refused():
    base = {"w": torch.ones(1), "n": torch.tensor(1)}
    for key in ("v", "n"):
        with pytest.raises(KeyError, match=f"the task vector holds '{key}'"):
            merging.apply_task_vector(base, {key: torch.ones(1)})
    with pytest.raises(ValueError, match="'w' has shape"):
        merging.apply_task_vector(base, {"w": torch.ones(2)})
