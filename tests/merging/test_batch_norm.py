import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from merging_cases import network, same_bits, tuned
from torch import nn

import merging
from merging.batch_norm import mixture, reestimate, reestimate_result


def column(*numbers):
    return [torch.tensor([number], dtype=torch.float64) for number in numbers]


def test_the_variance_of_a_mixture_includes_the_spread_of_means():
    mean, variance = mixture(column(0.0, 2.0), column(1.0, 3.0))
    assert (mean.item(), variance.item()) == (1.0, 2.0 + 1.0)
    mean, variance = mixture(column(0.0, 2.0), column(1.0, 3.0), [0.75, 0.25])
    assert (mean.item(), variance.item()) == (0.5, 0.75 * (1 + 0.25) + 0.25 * (3 + 2.25))


def test_a_mixture_is_what_all_samples_together_have():
    generator = torch.Generator().manual_seed(0)
    groups = [torch.randn(1000, generator=generator).double() * scale + shift for scale, shift in ((1, 0), (3, 5))]
    mean, variance = mixture([g.mean() for g in groups], [g.var(unbiased=False) for g in groups])
    together = torch.cat(groups)
    torch.testing.assert_close(mean, together.mean())
    torch.testing.assert_close(variance, together.var(unbiased=False))


@settings(max_examples=50, deadline=None)
@given(mean=st.floats(-1e3, 1e3), variance=st.floats(0, 1e3), weight=st.floats(0.01, 1))
def test_a_mixture_of_equal_distributions_is_that_distribution(mean, variance, weight):
    assert mixture(column(mean, mean), column(variance, variance), [weight, 1.0]) == (
        torch.tensor([mean], dtype=torch.float64),
        torch.tensor([variance], dtype=torch.float64),
    )


@pytest.mark.parametrize("method", sorted(set(merging.METHODS) - {"fisher"}))
def test_every_method_can_leave_statistics_to_the_mixture(method):
    base = network(0)
    pair = [tuned(base, 1), tuned(base, 2, 2.0)]
    own = merging.merge(method, base, pair)
    mixed = merging.merge(method, base, pair, batch_norm="mixture")
    means, variances = ([model[f"1.running_{kind}"].double() for model in pair] for kind in ("mean", "var"))
    alpha = own.coefficients["1"] if method == "duet" else None
    mean, variance = mixture(means, variances, alpha and [alpha, 1 - alpha])
    assert torch.equal(mixed.state["1.running_mean"], mean.float())
    assert torch.equal(mixed.state["1.running_var"], variance.float())
    assert mixed.provenance["batch_norm"] == "mixture"
    if method != "ties":  # whose threshold is no longer that of a vector with statistics
        parameters = [key for key in base if "running" not in key]
        assert all(torch.equal(mixed.state[key], own.state[key]) for key in parameters)


def test_the_mixture_takes_the_method_s_weights():
    base = network(0)
    pair = [tuned(base, 1), tuned(base, 2)]
    merged = merging.merge("averaging", base, pair, weights=[1, 3], batch_norm="mixture").state
    expected = 0.25 * pair[0]["1.running_mean"].double() + 0.75 * pair[1]["1.running_mean"].double()
    torch.testing.assert_close(merged["1.running_mean"], expected.float())


def test_ties_leaves_statistics_out_of_its_vector():
    base, model = {"b.weight": torch.zeros(4)}, {"b.weight": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    statistics = {"b.running_mean": torch.zeros(4), "b.running_var": torch.ones(4)}
    moved = {"b.running_mean": torch.full((4,), 50.0), "b.running_var": torch.full((4,), 60.0)}
    alone = merging.merge("ties", base, [model], density=0.25).state["b.weight"]
    mixed = merging.merge(
        "ties", {**base, **statistics}, [{**model, **moved}], density=0.25, batch_norm="mixture"
    ).state
    assert torch.equal(mixed["b.weight"], alone)
    assert torch.equal(mixed["b.running_var"], moved["b.running_var"])


def test_a_variance_that_would_be_negative_is_refused():
    base = {"b.running_mean": torch.zeros(1), "b.running_var": torch.tensor([4.0])}
    models = [{"b.running_mean": torch.zeros(1), "b.running_var": torch.tensor([1.0])}] * 2
    with pytest.raises(
        ValueError, match=r"'b.running_var': task_arithmetic makes this variance negative \(-2\); merge"
    ):
        merging.merge("task_arithmetic", base, models, scaling_factor=1.0)
    mixed = merging.merge("task_arithmetic", base, models, scaling_factor=1.0, batch_norm="mixture").state
    assert mixed["b.running_var"].item() == 1


def test_a_mixture_needs_the_means():
    base = {"b.running_var": torch.ones(1)}
    with pytest.raises(ValueError, match=r"'b.running_var' cannot be merged as a mixture: 'b.running_mean' is missing"):
        merging.merge("averaging", base, [base], batch_norm="mixture")


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4, momentum=0.3))


def batches(count, size=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 5, 5, generator=generator) for _ in range(count)]


def test_reestimation_averages_the_statistics_of_the_batches():
    net = model().train()
    weights = {key: t.clone() for key, t in net.state_dict().items() if "running" not in key and "num" not in key}
    net[3].eval()
    images = batches(3)
    assert reestimate(net, iter(images)) == 3
    with torch.no_grad():
        features = [net[0](image) for image in images]
    means = torch.stack([feature.mean(dim=(0, 2, 3)) for feature in features])
    variances = torch.stack([feature.transpose(0, 1).reshape(4, -1).var(dim=1) for feature in features])
    torch.testing.assert_close(net[1].running_mean, means.mean(dim=0))
    torch.testing.assert_close(net[1].running_var, variances.mean(dim=0))
    assert (net[1].momentum, net[3].momentum) == (0.1, 0.3)
    assert net.training and net[1].training and not net[3].training
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in weights.items())


def test_reestimation_forgets_the_old_statistics_and_uses_no_dropout():
    first, second = model(), model()
    first.train()
    for image in batches(5):
        first(100 * image)
    reestimate(first, batches(2))
    reestimate(second, batches(2))
    assert same_bits(first.state_dict(), second.state_dict())
    assert torch.equal(first[3].running_mean, second[3].running_mean)


def test_failed_reestimation_changes_nothing():
    net = model()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="expected at least one batch to re-estimate BatchNorm statistics, got none"):
        reestimate(net, [])
    assert same_bits(net.state_dict(), before)
    with pytest.raises(RuntimeError):
        reestimate(net, [*batches(1), torch.zeros(1, 5, 5, 5)])
    assert same_bits(net.state_dict(), before)
    assert net.training and net[1].momentum == 0.1


def test_a_model_without_statistics_is_refused():
    with pytest.raises(ValueError, match="no BatchNorm with running statistics"):
        reestimate(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)), batches(1))


def test_a_reestimated_merge_says_so():
    nets = [model() for _ in range(3)]
    for number, net in enumerate(nets):
        net.train()(batches(1)[0] * (number + 1))
    base, *pair = (net.state_dict() for net in nets)
    result = merging.merge("averaging", base, pair)
    before = {key: tensor.clone() for key, tensor in result.state.items()}
    target = model()
    better = reestimate_result(result, target, batches(2))
    assert better.provenance["batch_norm"] == "reestimated"
    assert better.provenance["batch_norm_batches"] == 2
    assert better.provenance["method"] == "averaging"
    assert same_bits(better.state, target.state_dict())
    assert not torch.equal(better.state["1.running_mean"], before["1.running_mean"])
    assert torch.equal(better.state["0.weight"], before["0.weight"])
    assert same_bits(result.state, before)
