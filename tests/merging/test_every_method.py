"""What every method must do: identity, order, inputs unchanged, dtypes, integers, ties."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from merging_cases import exact, families, network, options_for, ordinary, same_bits, tuned

import merging
from merging import blocks

PAIRS_ONLY = {"slerp", "duet"}
# Options with which a method returns the model that all inputs are.
WHOLE = {
    "averaging": {},
    "task_arithmetic": {"scaling_factor": 0.5},
    "ties": {"density": 1.0},
    "dare": {"drop_rate": 0.0, "scaling_factor": 0.5},
    "magmax": {},
    "fisher": {},
    "emr": {},
    "slerp": {"t": 0.3},
    "duet": {},
}
EVERY = pytest.mark.parametrize("method", merging.METHODS)


def test_every_method_is_tested():
    assert set(WHOLE) == set(merging.METHODS)


def copies(states):
    return [{key: tensor.clone() for key, tensor in state.items()} for state in states]


@EVERY
@settings(max_examples=25, deadline=None)
@given(family=families(ordinary, most=1))
def test_a_model_merged_with_itself_returns_bit_for_bit(method, family):
    base, [model] = family
    pair = [model, {key: tensor.clone() for key, tensor in model.items()}]
    merged = merging.merge(method, base, pair, **WHOLE[method], **options_for(method, pair)).state
    # A sum of a number and its negation is +0; everything else agrees to the bit.
    assert same_bits({k: t + 0.0 for k, t in merged.items()}, {k: t + 0.0 for k, t in model.items()})


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_models_equal_to_the_base_return_it(method, dtype):
    base = {key: t.to(dtype) if t.is_floating_point() else t for key, t in network(0).items()}
    pair = copies([base, base])
    assert same_bits(merging.merge(method, base, pair, **options_for(method, pair)).state, base)


@pytest.mark.parametrize("method", ["averaging", "fisher", "slerp", "duet", "magmax"])
def test_identity_is_exact_in_float64(method):
    # Times 1.1: more digits than float32 has, so that base + (model − base) would round.
    base, model = ({key: t.double() * 1.1 for key, t in network(seed).items()} for seed in (0, 1))
    pair = copies([model, model])
    merged = merging.merge(method, base, pair, **options_for(method, pair)).state
    floating = [key for key in base if "num_batches" not in key]
    assert all(torch.equal(merged[key], model[key]) for key in floating)


@pytest.mark.parametrize("method", sorted(set(merging.METHODS) - PAIRS_ONLY))
@settings(max_examples=25, deadline=None)
@given(family=families(exact))
def test_the_order_of_models_does_not_matter(method, family):
    base, models = family
    options = options_for(method, models)
    turned = {name: list(reversed(value)) for name, value in options.items()}
    if method == "fisher":
        options["normalize"] = turned["normalize"] = False
    if method == "dare":
        options["drop_rate"] = turned["drop_rate"] = 0.5
        options["seed"] = list(range(len(models)))
        turned["seed"] = list(reversed(options["seed"]))
    one = merging.merge(method, base, models, **options).state
    other = merging.merge(method, base, list(reversed(models)), **turned).state
    assert all(torch.equal(one[key], other[key]) for key in base)


def test_pairs_change_places_with_their_weights():
    base = network(0)
    one, two = tuned(base, 1), tuned(base, 2, size=0.4)
    there = merging.merge("duet", base, [one, two], gamma=0.5)
    back = merging.merge("duet", base, [two, one], gamma=0.5)
    for layer, alpha in there.coefficients.items():
        assert alpha == pytest.approx(1 - back.coefficients[layer])
    arc, reverse = (merging.merge("slerp", base, pair, t=t).state for pair, t in (([one, two], 0.2), ([two, one], 0.8)))
    for key in base:
        if base[key].is_floating_point():
            torch.testing.assert_close(there.state[key], back.state[key])
            torch.testing.assert_close(arc[key], reverse[key])


@EVERY
def test_the_order_of_keys_does_not_matter(method):
    base = network(0)
    pair = [tuned(base, 1), tuned(base, 2)]
    options = options_for(method, pair)
    expected = merging.merge(method, base, pair, **options).state
    turned = [dict(reversed(list(state.items()))) for state in (base, *pair)]
    for others in ([turned[1], turned[2]], [pair[0], turned[2]]):
        assert same_bits(merging.merge(method, base, others, **options).state, expected)
    merged = merging.merge(method, turned[0], pair, **options).state
    assert list(merged) == list(reversed(base))
    assert same_bits({key: merged[key] for key in base}, expected)


@EVERY
def test_inputs_are_not_changed_or_shared(method):
    base = network(0)
    pair = [tuned(base, 1), tuned(base, 2)]
    options = options_for(method, pair)
    states = [base, *pair, *options.get("fishers", [])]
    before = copies(states)
    merged = merging.merge(method, base, pair, **options).state
    for tensor in merged.values():
        tensor.fill_(7)
    assert all(same_bits(state, old) for state, old in zip(states, before))


@EVERY
def test_parameters_and_strided_tensors_are_read_as_they_are(method):
    base = network(0)
    pair = [tuned(base, 1), tuned(base, 2)]
    expected = merging.merge(method, base, pair, **options_for(method, pair)).state

    def strided(state):
        return {
            key: torch.nn.Parameter(t.transpose(0, 1).contiguous().transpose(0, 1)) if t.dim() > 1 else t
            for key, t in state.items()
        }

    odd = [strided(state) for state in pair]
    merged = merging.merge(method, strided(base), odd, **options_for(method, pair)).state
    assert same_bits(merged, expected)
    assert not any(tensor.requires_grad for tensor in merged.values())


@EVERY
def test_integer_tensors_are_copied_never_scaled(method):
    base = {**network(0), "mask": torch.tensor([True, False])}
    pair = [tuned(network(0), 5), tuned(network(0), 8)]
    for model in pair:
        model["mask"] = torch.tensor([True, True])
    merged = merging.merge(method, base, pair, **options_for(method, pair)).state
    source = pair[1] if method == "duet" else base
    for key in ("1.num_batches_tracked", "mask"):
        assert merged[key].dtype == source[key].dtype
        assert torch.equal(merged[key], source[key])


@EVERY
def test_tied_tensors_stay_tied(method):
    def tie(state):
        return {**state, "head.weight": state["0.weight"]}

    base = tie(network(0))
    pair = [tie(tuned(network(0), 1)), tie(tuned(network(0), 2))]
    untied = [{key: t for key, t in state.items() if key != "head.weight"} for state in (base, *pair)]
    result = merging.merge(method, base, pair, **options_for(method, pair))
    assert result.state["head.weight"].data_ptr() == result.state["0.weight"].data_ptr()
    assert result.provenance["tied"] == {"head.weight": "0.weight"}
    alone = merging.merge(method, untied[0], untied[1:], **options_for(method, untied[1:])).state
    assert torch.equal(result.state["head.weight"], alone["0.weight"])


@EVERY
def test_the_result_is_cast_once(method):
    base = network(0)
    pair = [tuned(base, 1), tuned(base, 2)]
    options = options_for(method, pair)
    wide = merging.merge(method, base, pair, output_dtype=torch.float64, **options).state
    for dtype in (torch.float32, torch.bfloat16):
        merged = merging.merge(method, base, pair, output_dtype=dtype, **options).state
        for key, tensor in merged.items():
            assert torch.equal(tensor, wide[key].to(dtype) if base[key].is_floating_point() else wide[key])


@EVERY
def test_blocks_and_threads_do_not_matter(method, monkeypatch):
    base = network(0)
    pair = [tuned(base, 1), tuned(base, 2)]
    options = {**options_for(method, pair), **({"drop_rate": 0.0} if method == "dare" else {})}
    expected = merging.merge(method, base, pair, **options).state
    monkeypatch.setattr(blocks, "BLOCK", 5)
    monkeypatch.setattr(blocks, "_BATCH", 2)
    for workers in (1, 3):
        merged = merging.merge(method, base, pair, workers=workers, **options).state
        for key in base:
            if method in PAIRS_ONLY | {"fisher"}:  # sums of parts of a norm round differently
                torch.testing.assert_close(merged[key], expected[key], rtol=1e-6, atol=0)
            else:
                assert torch.equal(merged[key], expected[key])


@EVERY
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_by_name(method, value):
    base = network(0)
    for guilty in (0, 1):
        pair = [tuned(base, 1), tuned(base, 2)]
        options = options_for(method, pair)
        pair[guilty]["3.weight"].view(-1)[3] = value
        with pytest.raises(ValueError, match=rf"^model {guilty + 1}: '3\.weight' holds {value}; expected finite"):
            merging.merge(method, base, pair, **options)


@EVERY
def test_the_function_has_the_table_s_defaults_and_says_what_it_did(method):
    entry = merging.METHODS[method]
    parameters = inspect.signature(entry.function).parameters
    own = [name for name in parameters if name not in ("base", "models", "settings")]
    assert own == [*entry.model_lists, *entry.defaults]
    assert {name: parameters[name].default for name in entry.defaults} == dict(entry.defaults)
    base = network(0)
    pair = [tuned(base, 1), tuned(base, 2)]
    options = options_for(method, pair)
    direct, named = entry.function(base, pair, **options), merging.merge(method, base, pair, **options)
    assert same_bits(direct.state, named.state)
    assert direct.provenance == named.provenance
    assert named.provenance["method"] == method
    assert named.provenance["batch_norm"] == "method"
    assert named.provenance["tensors_merged"] == 8
    assert named.provenance["tensors_copied"] == 1
