"""Intervals of a made-up run: the point values are the run's, replicates are those of resampled images written out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from random_run import SERIES, make_run
from safetensors import safe_open

from duet.evaluation.bootstrap import image_weights
from duet.evaluation.indices import compute_indices, mean_map
from duet.evaluation.intervals import SCALARS, run_replicates, steps, store_replicates
from duet.evaluation.replicates import RunDetections
from duet.series import Series, Task

METRICS = ("map50", "map50_95")
NAMES = ("role", "domain", "task", "classes", "class")


@pytest.fixture(scope="module")
def run():
    return make_run()


@pytest.fixture(scope="module")
def scored(run):
    return run_replicates(run.results, run.found, run.images, 60)


def written_out(run, row, resamples):
    """Class APs of a resample by the evaluator, on a list in which an image stands as often as it was drawn."""
    from duet.evaluation.average_precision import class_precisions

    values = []
    for stage in run.found.stages:
        by_class = {}
        for domain, found in stage.items():
            weights = image_weights(domain, len(found), resamples)[row]
            drawn = [place for place, weight in enumerate(weights) for _ in range(weight)]
            images = [replace(run.images[domain][p], path=Path(f"{domain}-{n}")) for n, p in enumerate(drawn)]
            detections = {image.path: found[place] for image, place in zip(images, drawn)}
            by_class |= {
                (domain, name): value.ap50
                for name, value in class_precisions(images, detections, SERIES.classes).items()
            }
        values.append(by_class)
    return values


def test_replicates_are_the_indices_of_resampled_images(run, scored):
    for row in (0, 7, 59):
        stages = written_out(run, row, 60)

        def value(stage, domain, classes, stages=stages):
            found = [ap for ap in (stages[stage][domain, name] for name in classes) if ap is not None]
            return sum(found) / len(found) if found else np.nan

        first, second, third = (task.classes for task in SERIES.tasks)
        ri = [
            value(2, "day", first) / value(0, "day", first),
            value(2, "night", second) / value(1, "night", second),
        ]
        assert scored.indices["map50/avg_ri"][row] == pytest.approx(np.nanmean(ri), abs=1e-9)
        grid = [value(2, domain, classes) for domain in SERIES.domains for classes in (first, second, third)]
        assert scored.indices["map50/mean_map"][row] == pytest.approx(np.nanmean(grid), abs=1e-9)
        fwt = [value(0, "night", first), value(1, "fog", first + second)]
        assert scored.indices["map50/fwt"][row] == pytest.approx(np.nanmean(fwt), abs=1e-9)


def test_every_index_and_every_map_has_an_interval(run, scored):
    intervals = scored.intervals
    assert json.loads(json.dumps(intervals, allow_nan=False)) == intervals
    assert (intervals["resamples"], intervals["level"], intervals["images"]["fog"]) == (60, 0.95, 12)
    for metric in METRICS:
        point = compute_indices(run.results, metric)
        for name in SCALARS:
            low, high = intervals["indices"][metric][name]
            value = mean_map(run.results, metric) if name == "mean_map" else getattr(point, name)
            assert value is not None
            replicates = scored.indices[f"{metric}/{name}"]
            assert replicates.shape == (60,) and replicates.dtype == np.float64
            kept = replicates[np.isfinite(replicates)]
            assert (low, high) == pytest.approx(tuple(np.percentile(kept, [2.5, 97.5])))
            assert low < high
        assert len(intervals["indices"][metric]["ri"]) == len(point.ri) == 2
        assert len(intervals["indices"][metric]["gi"]) == len(point.gi) == 5


def test_every_map_of_the_results_has_its_interval_in_the_same_place(run, scored):
    for stage, said in zip(run.results["stages"], scored.intervals["stages"]):
        assert said["task"] == stage["task"]
        for part, keys in (("slices", METRICS), ("grid", METRICS), ("class_ap", ("ap50", "ap50_95"))):
            assert len(said[part]) == len(stage[part]) > 0
            for item, entry in zip(said[part], stage[part]):
                names = {key: value for key, value in entry.items() if key in NAMES}
                assert {key: value for key, value in item.items() if key in NAMES} == names
                for key in keys:
                    low, high = item[key]
                    assert 0 <= low <= high <= 1
    assert [len(scored.intervals["reference"][part]) for part in ("slices", "grid")] == [5, 9]


def test_fewer_resamples_are_the_first_of_many(run, scored):
    few = run_replicates(run.results, run.found, run.images, 10)
    for key, values in few.indices.items():
        np.testing.assert_array_equal(values, scored.indices[key][:10])


def test_detectors_that_are_equal_have_no_noise_between_them(run):
    """All stages and references see the same resamples: a frozen detector's ratios do not vary."""
    frozen = make_run(joint=True)  # its one stage is the reference itself
    found = run_replicates(frozen.results, frozen.found, frozen.images, 40)
    assert found.indices["map50/overall"] == pytest.approx(np.ones(40), abs=1e-12)
    assert found.intervals["indices"]["map50"]["overall"] == pytest.approx([1, 1])
    low, high = found.intervals["indices"]["map50"]["mean_map"]
    assert high - low > 0.02
    assert set(found.indices) == {f"{metric}/{name}" for metric in METRICS for name in ("overall", "mean_map")}
    assert found.intervals["indices"]["map50"]["rai"] is None
    assert found.intervals["indices"]["map50"]["ri"] == []


def test_images_without_a_class_are_left_out_after_the_draw():
    run = make_run(seed=4, own_images=True)
    found = run_replicates(run.results, run.found, run.images, 30, own_images=True)
    with pytest.raises(ValueError, match="the detections give map50"):
        run_replicates(run.results, run.found, run.images, 30)
    everywhere = make_run(seed=4)
    other = run_replicates(everywhere.results, everywhere.found, everywhere.images, 30)
    # false detections in other images do not count, so that a slice scores higher in every resample
    assert (found.indices["map50/mean_map"] >= other.indices["map50/mean_map"]).all()
    assert found.intervals["stages"][0]["class_ap"] == other.intervals["stages"][0]["class_ap"]


def test_individual_references_are_found_by_their_slice():
    run = make_run(seed=2, kind="individual")
    found = run_replicates(run.results, run.found, run.images, 20)
    assert found.intervals["indices"]["map50"]["rai"] is not None
    assert steps(run.found) == 3 * 3 + 3 + 5
    labels = [key for key in run.found.reference if key.startswith("individual/night")]
    without = {key: value for key, value in run.found.reference.items() if key != labels[0]}
    with pytest.raises(ValueError, match=r"the reference: there are no detections 'individual/night\["):
        run_replicates(run.results, RunDetections(run.found.stages, without), run.images, 20)


def test_without_reference_only_the_ratios_to_it_have_no_interval():
    run = make_run(seed=3, kind="none")
    found = run_replicates(run.results, run.found, run.images, 20)
    block = found.intervals["indices"]["map50"]
    assert [name for name in SCALARS if block[name] is None] == [
        *("avg_gi", "avg_gi_capped", "rai", "rai_capped", "ni", "overall")
    ]
    assert block["gi"] == [None] * 5
    assert found.intervals["absent"] == {"map50": {}, "map50_95": {}}


def test_resamples_without_a_value_leave_the_interval_and_are_counted():
    series = Series("small", (Task("day", ("a",)), Task("night", ("b",))))
    run = make_run(seed=11, count=3, series=series)
    found = run_replicates(run.results, run.found, run.images, 200)
    values = found.indices["map50/avg_ri"]
    missing = int(np.isnan(values).sum())
    assert 0 < missing < 200
    assert found.intervals["absent"]["map50"]["avg_ri"] == missing
    kept = values[np.isfinite(values)]
    assert found.intervals["indices"]["map50"]["avg_ri"] == pytest.approx(list(np.percentile(kept, [2.5, 97.5])))
    cell = found.intervals["stages"][0]["slices"][0]
    weights = image_weights("day", 3, 200)
    boxes = [sum(label == "a" and not out for label, out in zip(i.labels, i.ignored)) for i in run.images["day"]]
    assert cell["absent"] == int((weights @ boxes == 0).sum()) > 0


def test_progress_is_told_for_each_detector_and_domain(run):
    calls = []
    run_replicates(run.results, run.found, run.images, 2, progress=lambda: calls.append(1))
    assert len(calls) == steps(run.found) == 12


def test_detections_that_do_not_give_the_results_are_refused(run):
    swapped = RunDetections(run.found.stages[::-1], run.found.reference)
    with pytest.raises(ValueError, match=r"stage 1, day\[a b\]: the detections give map50 0\.\d+, the results hold"):
        run_replicates(run.results, swapped, run.images, 5)
    with pytest.raises(ValueError, match="detections of 3 stages, got them of 2"):
        run_replicates(run.results, RunDetections(run.found.stages[:2], run.found.reference), run.images, 5)
    with pytest.raises(ValueError, match="the reference: there are no detections 'joint/"):
        run_replicates(run.results, RunDetections(run.found.stages, {}), run.images, 5)
    with pytest.raises(ValueError, match="expected detections on 11 images, got them on 12"):
        run_replicates(run.results, run.found, run.images | {"day": run.images["day"][1:]}, 5)
    with pytest.raises(ValueError, match="expected at least 1 resample, got 0"):
        run_replicates(run.results, run.found, run.images, 0)


def test_the_stored_replicates_are_those_of_the_indices(scored, tmp_path):
    store_replicates(scored, tmp_path / "bootstrap.safetensors")
    with safe_open(tmp_path / "bootstrap.safetensors", framework="numpy") as stream:
        assert stream.metadata() == {"resamples": "60", "seed": "0", "level": "0.95"}
        assert set(stream.keys()) == {f"{metric}/{name}" for metric in METRICS for name in SCALARS}
        np.testing.assert_array_equal(stream.get_tensor("map50/overall"), scored.indices["map50/overall"])
