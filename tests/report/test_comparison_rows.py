"""Rows of a comparison: grouped by series, detector and label, means over seeds, failures kept, bad input refused."""

import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from fake_grid import failed_run, make_grid_runs
from fake_run import TASKS, make_results

from duet.report.comparison import ComparedRun, compare_rows
from duet.report.comparison_rows import best_label


@pytest.fixture(scope="module")
def runs():
    return make_grid_runs(("duet", "lwf", "replay"), seeds=(1, 0), tasks=TASKS[:2])


def test_one_block_per_series_and_detector_in_order_of_appearance(runs):
    other = [replace(run, detector="rtdetr-l") for run in runs if run.label == "lwf"]
    blocks = compare_rows([*runs, *other])
    assert [(block.series, block.detector) for block in blocks] == [("demo", "yolo11n"), ("demo", "rtdetr-l")]
    assert [row.label for row in blocks[0].rows] == ["duet", "lwf", "replay", "joint"]
    assert [row.label for row in blocks[1].rows] == ["lwf"]
    assert compare_rows([]) == []


def test_mean_and_deviation_over_seeds(runs):
    row = compare_rows(runs)[0].rows[0]
    values = [run.results["indices"]["map50"]["overall"] for run in runs if run.label == "duet"]
    found = row.indices["map50"]["overall"]
    assert row.seeds == (0, 1)
    assert found.values == tuple(reversed(values))  # by rising seed
    assert found.mean == pytest.approx(sum(values) / 2)
    assert found.sd == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert (found.low, found.high) == (None, None)  # without a bootstrap
    assert row.mean("overall", "map50_95") != row.mean("overall")


def test_one_seed_has_no_deviation(runs):
    found = compare_rows(runs[:1])[0].rows[0].indices["map50"]["rai"]
    assert found.sd is None and found.mean == runs[0].results["indices"]["map50"]["rai"]


def test_sign_conflict_and_seconds(runs):
    row = compare_rows(runs)[0].rows[0]
    # The fake merges once, with a rate of 0.31 + 0.05 · 2; it trains 31.4 · task seconds and calibrates 3.25.
    assert row.mean("sign_conflict") == pytest.approx(0.41)
    assert row.mean("train_seconds") == pytest.approx(31.4 * 3 + 0.8 + 6.5)
    assert compare_rows(make_grid_runs(("frozen",)))[0].rows[0].mean("sign_conflict") is None


def test_mean_map_is_that_of_the_last_grid(runs):
    grid = [cell["map50"] for cell in runs[0].results["stages"][-1]["grid"]]
    assert compare_rows(runs[:1])[0].rows[0].mean("mean_map") == pytest.approx(statistics.fmean(grid))


def test_kinds_tell_who_breaks_a_rule(runs):
    block = compare_rows(runs)[0]
    assert [row.kind for row in block.rows] == ["method", "method", "exemplars", "joint"]
    assert [row.label for row in block.rivals] == ["duet", "lwf"]
    run = ComparedRun("demo", "yolo11n", "joint", 5, "pending", Path("x"), kind="joint")
    assert compare_rows([run])[0].rivals == ()


def test_failed_and_pending_seeds_stand_beside_finished_ones(runs):
    pending = ComparedRun("demo", "yolo11n", "duet", 7, "pending", Path("x"))
    row = compare_rows([*runs, failed_run("duet", 5), failed_run("duet", 3), pending])[0].rows[0]
    assert [run.seed for run in row.failed] == [3, 5]
    assert row.pending == (7,) and row.seeds == (0, 1)
    assert row.failed[0].log_tail[-1] == "RuntimeError: loss is NaN"


def test_method_that_only_failed_has_a_row_without_values():
    block = compare_rows([failed_run("erd")])[0]
    assert block.rows[0].indices["map50"]["overall"] is None
    assert block.sample is None and block.published == ()


def test_value_that_one_seed_lacks_leaves_the_mean(runs):
    lacking = make_results(TASKS[:2], seed=4) | {"seed": 4}
    lacking["indices"]["map50"]["ni"] = None
    run = ComparedRun("demo", "yolo11n", "duet", 4, "finished", Path("x"), lacking)
    found = compare_rows([runs[0], run])[0].rows[0].indices["map50"]["ni"]
    assert found.values == (runs[0].results["indices"]["map50"]["ni"], None)
    assert found.mean == found.values[0] and found.sd is None


def test_published_rows_are_those_of_series_and_detector():
    block = compare_rows(make_grid_runs(("duet",), tasks=TASKS[:2], name="pascal-voc-clipart"))[0]
    assert block.table == "S7"
    assert [row.method for row in block.published] == ["Seq FT", "LwF", "ERD", "DuET"]


def test_best_is_the_lowest_where_lower_is_better(runs):
    rows = compare_rows(runs)[0].rivals
    assert best_label(rows, "overall") == "duet"
    assert best_label(rows, "forgetting") == "duet"  # lwf forgets more
    assert rows[1].mean("forgetting") > rows[0].mean("forgetting")
    assert best_label((), "overall") is None


def test_bad_runs_are_refused(runs):
    with pytest.raises(ValueError, match=r"duet: two runs have the same seed, \[0, 1, 1\]"):
        compare_rows([*runs, runs[0]])
    short = replace(runs[0], seed=9, results=make_results(TASKS[:2], stages=1))
    with pytest.raises(ValueError, match="seed 9: called finished, but 1 of 2 stages are"):
        compare_rows([*runs, short])
    other = replace(runs[0], seed=9, results=make_results(TASKS[:3]))
    with pytest.raises(ValueError, match="seed 9: its tasks are not those of duet, seed 0"):
        compare_rows([*runs, other])
    with pytest.raises(ValueError, match="without results"):
        replace(runs[0], results=None)
    with pytest.raises(ValueError, match="status 'done' is not one of finished, failed, pending"):
        replace(runs[0], status="done")
