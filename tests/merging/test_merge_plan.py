"""What fits, what does not, and what the policy makes of it."""

import pytest
import torch
from merging_cases import network, same_bits, tuned

import merging
from merging.plan import plan_merge
from merging.sources import StateSource


def state(**tensors):
    return {
        key: torch.tensor(value) if not isinstance(value, torch.Tensor) else value for key, value in tensors.items()
    }


BASE = state(a=[1.0, 2.0], b=[3.0], c=[4.0], n=7)
ODD = state(a=[3.0, 4.0], b=[3.0, 3.0], d=[5.0], n=9)  # b has another shape, c is missing, d is extra


def test_everything_that_does_not_fit_is_refused_at_once():
    with pytest.raises(ValueError) as caught:
        merging.merge("averaging", BASE, [BASE, ODD])
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("3 tensors do not fit; the first is model 2: 'b' has shape (2,), expected (1,)")
    assert [line.strip() for line in lines[1:]] == [
        "model 2: 'b' has shape (2,), expected (1,) as in the base",
        "model 2: 'c' is missing (the base has shape (1,))",
        "model 2: 'd' is not in the base (shape (1,))",
    ]


def test_one_misfit_is_one_sentence():
    with pytest.raises(ValueError, match=r"^model 1: 'c' is missing \(the base has shape \(1,\)\)$"):
        merging.merge("averaging", BASE, [{key: tensor for key, tensor in BASE.items() if key != "c"}])
    with pytest.raises(ValueError, match=r"^model 1: 'n' is float32, the base has int64$"):
        merging.merge("averaging", BASE, [{**BASE, "n": torch.tensor(7.0)}])


def test_the_policy_base_keeps_what_does_not_fit():
    result = merging.merge("averaging", BASE, [ODD, ODD], policy="base")
    assert {key: tensor.tolist() for key, tensor in result.state.items()} == {"a": [3, 4], "b": [3], "c": [4], "n": 7}
    assert result.provenance["kept_from_base"] == ["b", "c"]
    assert result.provenance["left_out"] == ["d"]
    assert result.provenance["policy"] == "base"


def test_the_policy_intersection_leaves_it_out():
    result = merging.merge("averaging", BASE, [ODD, ODD], policy="intersection")
    assert {key: tensor.tolist() for key, tensor in result.state.items()} == {"a": [3, 4], "n": 7}
    assert result.provenance["kept_from_base"] == []
    assert result.provenance["left_out"] == ["b", "c", "d"]


def test_tensors_kept_from_the_base_are_checked_too():
    base = {**BASE, "c": torch.tensor([float("nan")])}
    with pytest.raises(ValueError, match="base: 'c' holds nan"):
        merging.merge("averaging", base, [ODD], policy="base")


def test_ties_limits_itself_to_what_fits():
    models = [{**ODD, "b": torch.full((2,), 1000.0)}]
    merged = merging.merge("ties", BASE, models, density=1.0, policy="intersection").state
    assert merged["a"].tolist() == [3, 4]


def test_the_table_names_counts_and_misfits():
    plan = plan_merge(StateSource(BASE, "base"), [StateSource(ODD, "model 1")], "base")
    assert plan.table().splitlines() == [
        "merged     1 tensors, 2 scalars",
        "copied     1 integer tensors",
        "tied       0 tensors",
        "from base  2 tensors that do not fit",
        "left out   1 tensors",
        "does not fit  model 1: 'b' has shape (2,), expected (1,) as in the base",
        "does not fit  model 1: 'c' is missing (the base has shape (1,))",
        "does not fit  model 1: 'd' is not in the base (shape (1,))",
    ]


def test_many_misfits_are_shortened():
    base = {f"k{number}": torch.zeros(1) for number in range(80)}
    with pytest.raises(ValueError, match=r"80 tensors do not fit(.|\n)*and 30 more$"):
        merging.merge("averaging", base, [{key: torch.zeros(2) for key in base}])


def test_other_dtypes_fit_and_are_noted():
    half = {key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in BASE.items()}
    plan = plan_merge(StateSource(BASE, "base"), [StateSource(half, "model 1")])
    assert plan.misfits == ()
    assert plan.notes == ("model 1: 3 tensors are stored in another dtype, 'a' as float16 instead of float32",)
    assert merging.merge("averaging", BASE, [half]).state["a"].dtype == torch.float32


def test_a_tie_that_a_model_has_broken_does_not_fit():
    shared = torch.ones(2)
    base = {"embed": shared, "head": shared}
    equal = {"embed": torch.full((2,), 3.0), "head": torch.full((2,), 3.0)}
    broken = {"embed": torch.zeros(2), "head": torch.ones(2)}
    merged = merging.merge("averaging", base, [equal]).state
    assert merged["head"] is merged["embed"]
    assert merged["head"].tolist() == [3, 3]
    with pytest.raises(ValueError, match="model 1: 'head' differs from 'embed', to which it is tied in the base"):
        merging.merge("averaging", base, [broken])
    with pytest.raises(ValueError, match="share no floating-point tensor"):
        merging.merge("averaging", base, [broken], policy="intersection")
    kept = merging.merge(
        "averaging", {**base, "w": torch.zeros(1)}, [{**broken, "w": torch.ones(1)}], policy="base"
    ).state
    assert (kept["embed"].tolist(), kept["head"].tolist(), kept["w"].tolist()) == ([1, 1], [1, 1], [1])


def test_a_tie_of_a_model_alone_is_noted_and_merged_apart():
    base = {"embed": torch.zeros(2), "head": torch.ones(2)}
    shared = torch.full((2,), 4.0)
    source = StateSource({"embed": shared, "head": shared}, "model 1")
    plan = plan_merge(StateSource(base, "base"), [source])
    assert plan.notes == ("model 1: 'head' is tied to 'embed', but not in the base",)
    merged = merging.merge("task_arithmetic", base, [source], scaling_factor=0.5).state
    assert (merged["embed"].tolist(), merged["head"].tolist()) == ([2, 2], [2.5, 2.5])


def test_views_and_empty_tensors_are_not_tied():
    whole = torch.ones(4)
    state_ = {
        "whole": whole,
        "part": whole[:2],
        "turned": whole.view(2, 2),
        "none": torch.zeros(0),
        "nil": torch.zeros(0),
    }
    assert StateSource(state_, "base").tied == {}
    assert StateSource({**state_, "again": whole.view(4)}, "base").tied == {"again": "whole"}


def test_ties_count_tied_tensors_once():
    shared, tuned_ = torch.zeros(4), torch.tensor([4.0, 3.0, 2.0, 1.0])
    base, model = {"a": shared, "b": shared, "c": torch.zeros(1)}, {"a": tuned_, "b": tuned_, "c": torch.tensor([2.5])}
    # Five scalars, k = 5 − 2 = 3: the third smallest of 1, 2, 2.5, 3, 4. Of nine, the sixth is 3.
    merged = merging.ties_merging(base, [model], density=0.4).state
    assert merged["a"].tolist() == [4, 3, 0, 0]
    assert merged["c"].tolist() == [2.5]


@pytest.mark.parametrize(
    ("base", "models", "error", "message"),
    [
        (BASE, [], ValueError, "expected at least one model to merge, got none"),
        (BASE, BASE, TypeError, "expected a list"),
        (BASE, [3], TypeError, "model 1: expected a mapping of tensors, got int"),
        ({"n": torch.tensor(1)}, [{"n": torch.tensor(2)}], ValueError, "share no floating-point tensor"),
        ({"a": 1.0}, [BASE], TypeError, "base: expected a tensor under 'a', got float"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, [BASE], TypeError, "base: 'a' is complex"),
        ({"a": torch.zeros(2).to_sparse()}, [BASE], TypeError, "base: 'a' is torch.sparse_coo"),
    ],
)
def test_what_cannot_be_merged_is_refused(base, models, error, message):
    with pytest.raises(error, match=message):
        merging.merge("averaging", base, models)


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        ("tie", {}, ValueError, "unknown method 'tie'; did you mean 'ties'?"),
        ("zzz", {}, ValueError, "unknown method 'zzz'; known: averaging, task_arithmetic"),
        ("ties", {"densty": 1}, ValueError, "unknown option of ties 'densty'; did you mean 'density'?"),
        ("averaging", {"density": 1}, ValueError, "unknown option of averaging 'density'"),
        ("fisher", {}, ValueError, "method 'fisher' needs the option 'fishers'"),
        ("ties", {"policy": "bases"}, ValueError, "option 'policy': .* got 'bases'; did you mean 'base'?"),
        ("ties", {"batch_norm": "mix"}, ValueError, "option 'batch_norm': expected one of method, mixture"),
        ("ties", {"output_dtype": "int8"}, ValueError, "option 'output_dtype': expected a floating-point dtype"),
        ("ties", {"output_dtype": "bf17"}, ValueError, "option 'output_dtype'"),
        ("ties", {"workers": 0}, ValueError, "option 'workers': expected at least 1, got 0"),
        ("ties", {"workers": 1.5}, TypeError, "option 'workers': expected a whole number"),
    ],
)
def test_unknown_names_and_values_are_refused(method, options, error, message):
    with pytest.raises(error, match=message):
        merging.merge(method, BASE, [BASE], **options)


def test_progress_counts_every_scalar():
    base = network(0)
    seen = []
    merging.merge("ties", base, [tuned(base, 1)], progress=lambda *step: seen.append(step))
    phases = list(dict.fromkeys(phase for phase, _, _ in seen))
    assert phases == ["threshold: count", "threshold: select", "merge"]
    scalars = sum(tensor.numel() for tensor in base.values() if tensor.is_floating_point())
    assert [step for step in seen if step[1] == step[2]] == [(phase, scalars, scalars) for phase in phases]


def test_settings_reach_the_plain_functions():
    settings = merging.MergeSettings(policy="base", output_dtype="bfloat16")
    merged = merging.weight_averaging(BASE, [ODD], settings=settings)
    assert merged.state["a"].dtype == torch.bfloat16
    assert merged.state["b"].dtype == torch.float32  # kept as it is
    assert merged.provenance["output_dtype"] == "bfloat16"
    assert same_bits(
        merging.merge("averaging", BASE, [ODD], policy="base", output_dtype=torch.bfloat16).state, merged.state
    )
