"""The indices on grids small enough to work out by hand; every expected value is written out as a sum."""

import copy
import json

import pytest
from hand_written_run import entry, three_tasks

from duet.evaluation.indices import compute_indices, mean_map


def slice_of(results, stage, domain, classes):
    return next(
        item
        for item in results["stages"][stage - 1]["slices"]
        if item["domain"] == domain and item["classes"] == classes
    )


def drop(items, domain, classes):
    items[:] = [item for item in items if (item["domain"], item["classes"]) != (domain, classes)]


def reasons(indices):
    return {(term.index, term.task, term.domain, term.classes): term.reason for term in indices.skipped}


def test_every_index_of_three_tasks():
    indices = compute_indices(three_tasks(), "map50")
    assert indices.tasks == 3
    assert [(term.task, term.domain, term.classes) for term in indices.ri] == [
        (1, "X", ("a",)),
        (2, "Y", ("b", "c")),
    ]
    assert [term.value for term in indices.ri] == pytest.approx([0.64 / 0.80, 0.49 / 0.70])
    assert indices.avg_ri == pytest.approx((0.80 + 0.70) / 2)
    assert [(term.task, term.domain, "".join(term.classes)) for term in indices.gi] == [
        (2, "X", "bc"),
        (2, "Y", "a"),
        (3, "X", "bc"),
        (3, "Y", "a"),
        (3, "Z", "abc"),
    ]
    gi = [0.37 / 0.85, 0.46 / 0.87, 0.31 / 0.85, 0.43 / 0.87, 0.27 / 0.79]
    assert [term.value for term in indices.gi] == pytest.approx(gi)
    assert indices.avg_gi == pytest.approx(sum(gi) / 5)
    assert indices.avg_gi_capped == indices.avg_gi
    assert indices.rai == pytest.approx((0.75 + sum(gi) / 5) / 2)
    assert indices.rai_capped == indices.rai
    assert indices.ni == pytest.approx((0.70 / 0.90 + 0.62 / 0.77) / 2)
    overall = [0.64 / 0.95, 0.31 / 0.85, 0.22 / 0.81, 0.43 / 0.87, 0.49 / 0.90, 0.26 / 0.83, 0.24 / 0.78]
    overall += [0.28 / 0.82, 0.62 / 0.77]
    assert indices.overall == pytest.approx(sum(overall) / 9)
    # X[a] was best after stage 2 (0.83), Y[b c] after stage 2 (0.70).
    assert indices.forgetting == pytest.approx(((0.83 - 0.64) + (0.70 - 0.49)) / 2)
    assert indices.bwt == pytest.approx(((0.64 - 0.80) + (0.49 - 0.70)) / 2)
    # Y[a] after stage 1; Z[a b c] after stage 2, the mean of its three classes.
    assert indices.fwt == pytest.approx((0.41 + (0.29 + 0.52 + 0.36) / 3) / 2)
    assert indices.skipped == ()


def test_map50_95_uses_its_own_columns_throughout():
    indices = compute_indices(three_tasks(), "map50_95")
    assert indices.avg_ri == pytest.approx((0.64**2 / 0.80**2 + 0.49**2 / 0.70**2) / 2)
    gi = [0.37**2 / 0.85**2, 0.46**2 / 0.87**2, 0.31**2 / 0.85**2, 0.43**2 / 0.87**2, 0.27**2 / 0.79**2]
    assert indices.avg_gi == pytest.approx(sum(gi) / 5, abs=1e-5)
    assert indices.ni == pytest.approx((0.70**2 / 0.90**2 + 0.62**2 / 0.77**2) / 2)
    assert indices.bwt == pytest.approx(((0.64**2 - 0.80**2) + (0.49**2 - 0.70**2)) / 2)
    assert indices.fwt == pytest.approx((0.41 + (0.29 + 0.52 + 0.36) / 3) / 4)


def test_index_above_one_is_given_raw_and_capped():
    results = three_tasks()
    slice_of(results, 3, "X", ["a"])["map50"] = 0.88  # RI_X = 1.1
    slice_of(results, 2, "Y", ["a"])["map50"] = 0.957  # GI = 1.1
    indices = compute_indices(results, "map50")
    assert indices.avg_ri == pytest.approx((1.1 + 0.7) / 2)
    rest = 0.37 / 0.85 + 0.31 / 0.85 + 0.43 / 0.87 + 0.27 / 0.79
    assert indices.avg_gi == pytest.approx((1.1 + rest) / 5)
    assert indices.avg_gi_capped == pytest.approx((1.0 + rest) / 5)
    assert indices.rai == pytest.approx((0.9 + (1.1 + rest) / 5) / 2)
    assert indices.rai_capped == pytest.approx(((1.0 + 0.7) / 2 + (1.0 + rest) / 5) / 2)


def test_forgetting_takes_the_best_stage_before_the_last_and_may_be_negative():
    results = three_tasks()
    slice_of(results, 3, "X", ["a"])["map50"] = 0.90
    indices = compute_indices(results, "map50")
    assert indices.forgetting == pytest.approx(((0.83 - 0.90) + (0.70 - 0.49)) / 2)
    assert indices.bwt == pytest.approx(((0.90 - 0.80) + (0.49 - 0.70)) / 2)


def test_class_without_test_boxes_leaves_the_means():
    results = three_tasks()
    for stage in (2, 3):
        slice_of(results, stage, "Y", ["a"])["map50"] = None
    for place in (results["stages"][2]["grid"], results["reference"]["grid"], results["reference"]["slices"]):
        next(item for item in place if item["domain"] == "Y" and item["classes"] == ["a"])["map50"] = None
    results["stages"][0]["class_ap"][1]["ap50"] = None
    indices = compute_indices(results, "map50")
    assert [term.value for term in indices.gi][1::2] == [None, None]
    assert indices.avg_gi == pytest.approx((0.37 / 0.85 + 0.31 / 0.85 + 0.27 / 0.79) / 3)
    assert indices.fwt == pytest.approx((0.29 + 0.52 + 0.36) / 3)
    rest = [
        0.64 / 0.95,
        0.31 / 0.85,
        0.22 / 0.81,
        0.49 / 0.90,
        0.26 / 0.83,
        0.24 / 0.78,
        0.28 / 0.82,
        0.62 / 0.77,
    ]
    assert indices.overall == pytest.approx(sum(rest) / 8)
    assert list(reasons(indices)) == [
        ("gi", 2, "Y", ("a",)),
        ("gi", 3, "Y", ("a",)),
        ("overall", 3, "Y", ("a",)),
        ("fwt", 2, "Y", ("a",)),
    ]
    assert set(reasons(indices).values()) == {"no test box of these classes"}


def test_fwt_averages_the_classes_that_have_test_boxes():
    results = three_tasks()
    results["stages"][1]["class_ap"][1]["ap50"] = None  # Z[b]
    assert compute_indices(results, "map50").fwt == pytest.approx((0.41 + (0.29 + 0.36) / 2) / 2)


def test_zero_reference_is_no_division_and_is_reported():
    results = three_tasks()
    results["reference"]["slices"][2]["map50"] = 0.0  # Z[a b c]
    results["reference"]["slices"][4]["map50"] = 0.0  # Z[d]
    slice_of(results, 1, "X", ["a"])["map50"] = 0.0
    indices = compute_indices(results, "map50")
    assert indices.avg_ri == pytest.approx(0.70)
    assert indices.avg_gi == pytest.approx((0.37 / 0.85 + 0.46 / 0.87 + 0.31 / 0.85 + 0.43 / 0.87) / 4)
    assert indices.ni == pytest.approx(0.70 / 0.90)
    assert indices.bwt == pytest.approx(((0.64 - 0.0) + (0.49 - 0.70)) / 2)
    assert reasons(indices) == {
        ("ri", 1, "X", ("a",)): "mAP right after its stage is 0",
        ("gi", 3, "Z", ("a", "b", "c")): "reference is 0",
        ("ni", 3, "Z", ("d",)): "reference is 0",
    }


def test_zero_of_the_joint_model_leaves_overall_alone():
    results = three_tasks()
    for domain, classes in (("X", ["d"]), ("Z", ["a"])):
        cells = results["reference"]["grid"]
        next(c for c in cells if (c["domain"], c["classes"]) == (domain, classes))["map50"] = 0.0
    indices = compute_indices(results, "map50")
    rest = [0.64 / 0.95, 0.31 / 0.85, 0.43 / 0.87, 0.49 / 0.90, 0.26 / 0.83, 0.28 / 0.82, 0.62 / 0.77]
    assert indices.overall == pytest.approx(sum(rest) / 7)
    assert reasons(indices) == {
        ("overall", 3, "X", ("d",)): "joint model's mAP is 0",
        ("overall", 3, "Z", ("a",)): "joint model's mAP is 0",
    }
    untouched = compute_indices(three_tasks(), "map50")
    assert (indices.rai, indices.ni) == (untouched.rai, untouched.ni)


def test_every_reference_zero_is_no_index_rather_than_zero_or_infinite():
    results = three_tasks()
    for item in (*results["reference"]["slices"], *results["reference"]["grid"]):
        item["map50"] = 0.0
    indices = compute_indices(results, "map50")
    assert (indices.avg_gi, indices.avg_gi_capped, indices.rai, indices.rai_capped) == (None,) * 4
    assert (indices.ni, indices.overall) == (None, None)
    assert indices.avg_ri == pytest.approx(0.75)
    assert len(indices.skipped) == 5 + 2 + 9


def test_new_classes_and_overall_may_be_above_one_and_are_not_capped():
    results = three_tasks()
    slice_of(results, 2, "Y", ["b", "c"])["map50"] = 0.99  # 1.1 of the reference
    results["stages"][2]["grid"][8]["map50"] = 0.924  # Z[d]: 1.2 of the joint model
    indices = compute_indices(results, "map50")
    assert indices.ni == pytest.approx((1.1 + 0.62 / 0.77) / 2)
    overall = [0.64 / 0.95, 0.31 / 0.85, 0.22 / 0.81, 0.43 / 0.87, 0.49 / 0.90, 0.26 / 0.83, 0.24 / 0.78]
    assert indices.overall == pytest.approx((sum(overall) + 0.28 / 0.82 + 1.2) / 9)


def test_task_whose_classes_are_missing_from_its_own_test_split():
    results = three_tasks()
    slice_of(results, 1, "X", ["a"])["map50"] = None
    for stage in (2, 3):
        slice_of(results, stage, "X", ["a"])["map50"] = None
    indices = compute_indices(results, "map50")
    assert [term.value for term in indices.ri] == [None, pytest.approx(0.49 / 0.70)]
    assert indices.avg_ri == pytest.approx(0.70)
    assert indices.forgetting == pytest.approx(0.70 - 0.49)
    assert indices.bwt == pytest.approx(0.49 - 0.70)


def test_a_measured_zero_is_a_zero():
    results = three_tasks()
    for domain, classes in (("X", ["a"]), ("Y", ["b", "c"])):
        slice_of(results, 3, domain, classes)["map50"] = 0.0
    indices = compute_indices(results, "map50")
    assert indices.avg_ri == 0.0
    assert indices.skipped == ()


@pytest.mark.parametrize(
    "reference", [None, {"kind": "none", "slices": [], "grid": []}, {"kind": "none", "grid": None}]
)
def test_without_reference_only_the_ratios_to_it_are_none(reference):
    results = three_tasks()
    results["reference"] = reference
    indices = compute_indices(results, "map50")
    assert indices.avg_ri == pytest.approx(0.75)
    assert [term.value for term in indices.gi] == [None] * 5
    assert (indices.avg_gi, indices.avg_gi_capped, indices.rai, indices.rai_capped) == (None,) * 4
    assert (indices.ni, indices.overall) == (None, None)
    assert indices.bwt == pytest.approx(-0.185)
    assert len(indices.skipped) == 5 + 2 + 9


def test_individual_reference_without_joint_grid_has_no_overall():
    results = three_tasks()
    results["reference"] |= {"kind": "individual", "grid": []}
    indices = compute_indices(results, "map50")
    assert indices.overall is None
    assert indices.ni == pytest.approx((0.70 / 0.90 + 0.62 / 0.77) / 2)
    assert {term.reason for term in indices.skipped} == {"no joint model's mAP"}


def test_run_without_grid_still_has_everything_but_overall():
    results = three_tasks()
    for stage in results["stages"]:
        stage["grid"] = []
    indices = compute_indices(results, "map50")
    assert indices.overall is None
    assert indices.forgetting == pytest.approx(0.20)
    assert {term.reason for term in indices.skipped} == {"no grid was scored"}
    assert mean_map(results) is None


def test_one_task_has_no_terms_but_overall():
    results = three_tasks()
    del results["stages"][1:]
    indices = compute_indices(results, "map50")
    assert (indices.tasks, indices.ri, indices.gi, indices.skipped) == (1, (), (), ())
    means = ("avg_ri", "avg_gi", "avg_gi_capped", "rai", "rai_capped", "ni", "forgetting", "bwt", "fwt")
    assert [getattr(indices, name) for name in means] == [None] * 9
    assert indices.overall == pytest.approx(0.80 / 0.95)


def test_unfinished_run_is_the_series_cut_after_the_last_stage():
    results = three_tasks()
    del results["stages"][2]
    indices = compute_indices(results, "map50")
    assert indices.tasks == 2
    assert indices.avg_ri == pytest.approx(0.83 / 0.80)
    assert indices.avg_gi == pytest.approx((0.37 / 0.85 + 0.46 / 0.87) / 2)
    assert indices.ni == pytest.approx(0.70 / 0.90)
    assert indices.overall == pytest.approx((0.83 / 0.95 + 0.37 / 0.85 + 0.46 / 0.87 + 0.70 / 0.90) / 4)
    assert indices.forgetting == pytest.approx(0.80 - 0.83)
    assert indices.fwt == pytest.approx(0.41)
    assert mean_map(results) == pytest.approx((0.83 + 0.37 + 0.46 + 0.70) / 4)


def test_joint_run_has_overall_only():
    results = three_tasks()
    last = results["stages"][2]
    results["stages"] = [{"task": 0, "slices": [entry("X", ["a"], 0.9, role="new")], "grid": last["grid"]}]
    indices = compute_indices(results, "map50")
    full = compute_indices(three_tasks(), "map50")
    assert indices.overall == pytest.approx(full.overall)
    assert {name for name, value in indices.to_dict().items() if value is None} == {
        *("ri", "avg_ri", "gi", "avg_gi", "avg_gi_capped", "rai", "rai_capped"),
        *("ni", "forgetting", "bwt", "fwt"),
    }
    assert mean_map(results) == pytest.approx((0.64 + 0.31 + 0.22 + 0.43 + 0.49 + 0.26 + 0.24 + 0.28 + 0.62) / 9)


def test_mean_map_leaves_out_cells_without_boxes():
    results = three_tasks()
    results["stages"][2]["grid"][0]["map50"] = None
    assert mean_map(results) == pytest.approx((0.31 + 0.22 + 0.43 + 0.49 + 0.26 + 0.24 + 0.28 + 0.62) / 8)
    assert mean_map(results, "map50_95") == pytest.approx(
        (0.64**2 + 0.31**2 + 0.22**2 + 0.43**2 + 0.49**2 + 0.26**2 + 0.24**2 + 0.28**2 + 0.62**2) / 9
    )


def test_slice_is_found_in_the_grid_and_in_any_class_order():
    results = three_tasks()
    drop(results["stages"][2]["slices"], "X", ["a"])
    for item in (*results["stages"][2]["slices"], *results["stages"][2]["grid"]):
        item["classes"] = item["classes"][::-1]
    expected = compute_indices(three_tasks(), "map50")
    assert compute_indices(results, "map50").avg_ri == expected.avg_ri
    assert compute_indices(results, "map50").rai == expected.rai
    assert compute_indices(results, "map50").overall == expected.overall


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_missing_slice_is_refused_by_name(stage):
    results = three_tasks()
    drop(results["stages"][stage - 1]["slices"], "X", ["a"])
    drop(results["stages"][stage - 1]["grid"], "X", ["a"])
    with pytest.raises(ValueError, match=rf"stage {stage}: slice X\['a'\] is missing|stage 3, grid: cell X\['a'\]"):
        compute_indices(results, "map50")


def test_missing_grid_cell_is_refused_by_name():
    results = three_tasks()
    drop(results["stages"][2]["grid"], "Z", ["b", "c"])
    with pytest.raises(ValueError, match=r"stage 3, grid: cell Z\['b', 'c'\] is missing"):
        compute_indices(results, "map50")
    with pytest.raises(ValueError, match=r"stage 3, grid: cell Z\['b', 'c'\] is missing"):
        mean_map(results)


def test_missing_class_and_unscored_domain_in_class_ap():
    results = three_tasks()
    del results["stages"][1]["class_ap"][1]
    with pytest.raises(ValueError, match="stage 2, class_ap of Z: class 'b' is missing"):
        compute_indices(results, "map50")
    results["stages"][1]["class_ap"] = []
    indices = compute_indices(results, "map50")
    assert indices.fwt == pytest.approx(0.41)
    assert reasons(indices) == {("fwt", 3, "Z", ("a", "b", "c")): "domain not scored after task 2"}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, 41.0])
def test_value_that_is_no_fraction_is_refused(value):
    results = three_tasks()
    slice_of(results, 2, "Y", ["a"])["map50"] = value
    with pytest.raises(ValueError, match="stage 2, slices, Y: expected map50 from 0 to 1 or null"):
        compute_indices(results, "map50")


def test_missing_metric_key_is_refused():
    results = three_tasks()
    del results["reference"]["slices"][0]["map50_95"]
    with pytest.raises(ValueError, match="reference, X: 'map50_95' is missing"):
        compute_indices(results, "map50_95")


@pytest.mark.parametrize("numbers", [[], [2], [1, 3], [2, 1], [0, 1], [1, 2, 3, 4]])
def test_other_stage_numbers_are_refused(numbers):
    results = three_tasks()
    results["stages"] = [dict(results["stages"][0], task=number) for number in numbers]
    with pytest.raises(ValueError, match="expected task 0 alone or tasks 1 … T in order"):
        compute_indices(results, "map50")


def test_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metric: expected one of"):
        compute_indices(three_tasks(), "map75")


def test_to_dict_is_the_documented_form_and_input_is_unchanged():
    results = three_tasks()
    results["reference"]["slices"][4]["map50"] = None
    before = copy.deepcopy(results)
    form = compute_indices(results, "map50").to_dict()
    assert results == before
    assert form == json.loads(json.dumps(form, allow_nan=False))
    assert list(form) == [
        *("tasks", "ri", "avg_ri", "gi", "avg_gi", "avg_gi_capped", "rai", "rai_capped"),
        *("ni", "overall", "forgetting", "bwt", "fwt", "skipped"),
    ]
    assert form["ri"][1] == {"task": 2, "domain": "Y", "classes": ["b", "c"], "value": pytest.approx(0.7)}
    assert form["gi"][0] == {"task": 2, "domain": "X", "classes": ["b", "c"], "value": pytest.approx(0.37 / 0.85)}
    assert form["skipped"] == [{"index": "ni", "task": 3, "domain": "Z", "classes": ["d"], "reason": "no reference"}]
