"""Who leads, and which differences are larger than the noise, in sentences."""

from dataclasses import replace

import pytest
from fake_grid import make_grid_runs, write_replicates
from fake_run import TASKS

from duet.report.comparison_rows import compare_rows
from duet.report.comparison_verdicts import all_differences, ranked, shown_rows, verdict_of


def grid(labels, seeds=(0, 1, 2), **more):
    return make_grid_runs(labels, seeds, TASKS[:2], **more)


def with_overall(runs, label, values):
    """The runs of one method with other values of Overall."""
    for run in runs:
        if run.label == label:
            run.results["indices"]["map50"]["overall"] = values[run.seed]
    return runs


def test_leader_and_lead_over_every_other_method():
    verdict = verdict_of(compare_rows(grid(("sequential", "lwf", "duet", "replay")))[0])
    assert verdict.leader.label == "duet" and verdict.index.key == "overall"  # replay keeps images: no rival
    assert [item.second for item in verdict.differences] == ["lwf", "sequential"]
    assert all(item.larger_than_noise for item in verdict.differences)
    first, second = (f"+{item.mean:.3f}" for item in verdict.differences)
    assert verdict.sentence == (
        f"In Overall, duet leads. Its lead over lwf ({first}) and sequential ({second}) is larger than the noise."
    )


def test_difference_within_the_noise_is_said_to_be_so():
    runs = with_overall(grid(("duet", "lwf")), "duet", [0.80, 0.70, 0.75])
    runs = with_overall(runs, "lwf", [0.70, 0.79, 0.74])
    verdict = verdict_of(compare_rows(runs)[0])
    assert verdict.differences[0].larger_than_noise is False
    assert verdict.sentence == "In Overall, duet leads. Its lead over lwf (+0.007) is not larger than the noise."


def test_one_seed_without_a_bootstrap_says_nothing():
    verdict = verdict_of(compare_rows(grid(("duet", "lwf"), seeds=(0,)))[0])
    assert verdict.differences[0].larger_than_noise is None and verdict.differences[0].low is None
    assert verdict.judgement.endswith("nothing can be said: one seed, and no bootstrap.")


def test_one_seed_with_a_bootstrap_can_be_judged(tmp_path):
    runs = grid(("duet", "sequential"), seeds=(0,), root=tmp_path)
    for run in runs:
        write_replicates(run)
    difference = verdict_of(compare_rows(runs)[0]).differences[0]
    assert difference.larger_than_noise and 0 < difference.low < difference.mean < difference.high


def test_resamples_that_methods_share_leave_their_difference(tmp_path):
    runs = grid(("duet", "lwf"), root=tmp_path)
    for run in runs:
        write_replicates(run, spread=0.05)
    block = compare_rows(runs)[0]
    difference = verdict_of(block).differences[0]
    found = block.rows[0].indices["map50"]["overall"]
    assert difference.high - difference.low < (found.high - found.low) / 2


def test_only_seeds_that_both_have_are_compared():
    runs = [run for run in grid(("duet", "lwf")) if (run.label, run.seed) != ("lwf", 1)]
    difference = verdict_of(compare_rows(runs)[0]).differences[0]
    assert difference.seeds == (0, 2)
    values = {(run.label, run.seed): run.results["indices"]["map50"]["overall"] for run in runs}
    expected = sum(values["duet", seed] - values["lwf", seed] for seed in (0, 2)) / 2
    assert difference.mean == pytest.approx(expected)


def test_methods_without_a_common_seed_have_no_difference():
    runs = [replace(run, seed=run.seed + 10 * (run.label == "lwf")) for run in grid(("duet", "lwf"))]
    verdict = verdict_of(compare_rows(runs)[0])
    assert verdict.differences == ()
    assert verdict.judgement == "It shares no seed with another exemplar-free method: there is nothing to compare."


def test_lone_method_and_none():
    alone = verdict_of(compare_rows(grid(("duet",)))[0])
    assert alone.sentence == "duet is the only exemplar-free method that has finished: there is nothing to compare."
    joint = [run for run in grid(("duet",)) if run.label == "joint"]
    verdict = verdict_of(compare_rows(joint)[0])
    assert verdict.leader is None and verdict.sentence.startswith("No exemplar-free method has finished")


def test_mean_map_decides_where_no_run_has_an_overall():
    runs = grid(("duet", "lwf"))
    for run in runs:
        run.results["indices"]["map50"]["overall"] = None
    verdict = verdict_of(compare_rows(runs)[0])
    assert verdict.index.key == "mean_map" and verdict.sentence.startswith("In Mean mAP, duet leads.")


def test_every_pair_of_methods_is_compared_the_better_one_first():
    block = compare_rows(grid(("sequential", "duet", "replay")))[0]
    found = [item for key, item in all_differences(block) if key == "overall"]
    assert len(found) == 6  # of four methods, joint included
    assert all(item.mean >= 0 for item in found)
    assert [row.label for row in ranked(block.rows, "forgetting")][-1] == "sequential"
    assert [row.label for row in shown_rows(block)] == ["duet", "sequential", "joint", "replay"]
