import math

import pytest
import torch
from merging_cases import network, same_bits, tuned

import merging


def states(*numbers):
    return [{"l.weight": torch.tensor(values, dtype=torch.float64)} for values in numbers]


def test_one_layer_by_hand():
    base, previous, current = states([0.0, 0.0], [3.0, 0.0], [0.0, 1.0])
    # ‖τ_old‖ = 3, ‖τ_curr‖ = 1, ‖τ_old + τ_curr‖ = 4: p = 1/2.
    alpha = 0.5 + 0.1 * math.tanh(0.5)
    result = merging.duet_merging(base, [previous, current], epsilon=1e-30)
    assert result.coefficients == {"l": pytest.approx(alpha, abs=1e-15)}
    assert result.state["l.weight"].tolist() == [pytest.approx(3 * alpha), pytest.approx(1 - alpha)]
    assert result.provenance["options"] == {"gamma": 0.1, "alpha_base": 0.5, "epsilon": 1e-30, "scope": "layer"}


def test_the_divisor_is_the_norm_of_the_sum_of_the_task_vectors():
    base, previous, current = states([0.0, 0.0], [3.0, 1.0], [-1.0, 1.0])
    result = merging.duet_merging(base, [previous, current], epsilon=1e-30, gamma=1.0)
    assert result.coefficients["l"] == pytest.approx(0.5 + math.tanh((4 - 2) / 4))


def test_epsilon_is_added_to_the_divisor():
    base, previous, current = states([0.0], [3.0], [1.0])
    result = merging.duet_merging(base, [previous, current], epsilon=4.0, gamma=1.0)
    assert result.coefficients["l"] == pytest.approx(0.5 + math.tanh(2 / (4 + 4)))


@pytest.mark.parametrize(("previous", "current", "p"), [(5.0, 0.0, 1.0), (0.0, 5.0, -1.0), (2.0, -2.0, 0.0)])
def test_the_extremes_of_p(previous, current, p):
    base, old, new = states([0.0], [previous], [current])
    alpha = merging.duet_merging(base, [old, new], gamma=0.1, epsilon=1e-30).coefficients["l"]
    assert alpha == pytest.approx(0.5 + 0.1 * math.tanh(p))


def test_a_layer_is_the_module_and_its_parameters_decide():
    base = {"bn.weight": torch.zeros(1), "bn.bias": torch.zeros(1), "bn.running_mean": torch.zeros(1)}
    old = {"bn.weight": torch.tensor([2.0]), "bn.bias": torch.tensor([1.0]), "bn.running_mean": torch.tensor([100.0])}
    new = {"bn.weight": torch.tensor([1.0]), "bn.bias": torch.tensor([0.0]), "bn.running_mean": torch.tensor([900.0])}
    alpha = 0.5 + 0.5 * math.tanh((3 - 1) / 4)
    result = merging.duet_merging(base, [old, new], gamma=0.5)
    assert result.coefficients == {"bn": pytest.approx(alpha)}
    assert result.state["bn.running_mean"].item() == pytest.approx(100 * alpha + 900 * (1 - alpha))
    own = merging.duet_merging(base, [old, new], gamma=0.5, scope="tensor").coefficients
    assert own == {
        "bn.weight": pytest.approx(0.5 + 0.5 * math.tanh(1 / 3)),
        "bn.bias": pytest.approx(0.5 + 0.5 * math.tanh(1)),
        "bn.running_mean": pytest.approx(0.5 + 0.5 * math.tanh(-0.8)),
    }


def test_a_layer_of_statistics_only_takes_its_norms_from_them():
    base, old, new = ({"bn.running_mean": torch.tensor([value])} for value in (0.0, 3.0, 1.0))
    alpha = merging.duet_merging(base, [old, new], gamma=0.5).coefficients["bn"]
    assert alpha == pytest.approx(0.5 + 0.5 * math.tanh(0.5))


def test_tensors_without_a_dot_belong_to_the_root():
    base = {"weight": torch.zeros(2), "bias": torch.zeros(1)}
    model = {"weight": torch.ones(2), "bias": torch.ones(1)}
    assert merging.duet_merging(base, [model, base]).coefficients == {"(root)": pytest.approx(0.5 + 0.1 * math.tanh(1))}


def test_variances_stay_between_those_of_the_models():
    base = network(0)
    old, new = tuned(base, 1), tuned(base, 2, size=3.0)
    merged = merging.duet_merging(base, [old, new], gamma=0.5).state["1.running_var"]
    assert (merged > 0).all()
    low, high = (
        torch.minimum(old["1.running_var"], new["1.running_var"]),
        torch.maximum(old["1.running_var"], new["1.running_var"]),
    )
    assert ((low <= merged) & (merged <= high)).all()


def test_the_counter_is_the_current_model_s():
    base = network(0)
    merged = merging.duet_merging(base, [tuned(base, 4), tuned(base, 9)]).state
    assert merged["1.num_batches_tracked"].item() == base["1.num_batches_tracked"].item() + 9


def test_equals_the_equation_of_the_paper():
    base = network(0)
    old, new = tuned(base, 1), tuned(base, 2)
    result = merging.duet_merging(base, [old, new], gamma=0.3, alpha_base=0.4)
    for key, tensor in result.state.items():
        if tensor.is_floating_point():
            alpha = result.coefficients[key.rpartition(".")[0]]
            origin, previous, current = (state[key].double() for state in (base, old, new))
            expected = origin + alpha * (previous - origin) + (1 - alpha) * (current - origin)
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)


def test_identity_holds_for_every_choice_of_options():
    base, model = network(0), network(1)
    for scope in ("layer", "tensor"):
        for alpha_base in (0.0, 0.3, 1.0):
            merged = merging.duet_merging(base, [model, model], gamma=1.0, alpha_base=alpha_base, scope=scope).state
            assert same_bits(merged, model)


@pytest.mark.parametrize("count", [1, 3])
def test_exactly_two_models(count):
    base = network(0)
    with pytest.raises(ValueError, match=f"exactly two models, previous and current; got {count}"):
        merging.duet_merging(base, [base] * count)
