"""Whole runs on a small series with the real network: resume, repeatability, no second look at old images."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_series
import torch
import yaml
from safetensors.numpy import load_file

from duet.config import parse_assignments
from duet.datasets.training import colour_statistics
from duet.detectors.families import restore_detector
from duet.errors import InputError
from duet.learner import Learner
from duet.monitor import Monitor
from duet.resolve import resolve_config
from duet.stage_data import own_labels

pytestmark = pytest.mark.slow

SERIES = {
    "name": "small",
    "scenes": {"seed": 5, "train_scenes": 48, "test_scenes": 24},
    "other_labels": "drop",
    "unlabelled_images": "keep",
    "train": {"epochs": 2, "image_size": 160, "fliplr": 0.0, "batch": 8, "threads": 1},
    "tasks": [
        {"domain": "clear", "classes": ["0", "1", "2"]},
        {"domain": "night", "classes": ["3", "4"]},
        {"domain": "fog", "classes": ["6", "7"]},
    ],
}


@pytest.fixture(scope="module")
def series(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("series") / "small.yaml"
    path.write_text(yaml.safe_dump(SERIES))
    return path


@pytest.fixture(scope="module")
def undisturbed(series, pretrained_weights, shared_cache, tmp_path_factory):
    """A run that nothing disturbs; its folder and results."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUET_CACHE", str(shared_cache))
        results = Learner(config(series, pretrained_weights), out).run()
    return out, results


def config(series, weights, *assignments, method="duet"):
    options = {"series": str(series), "detector": str(weights), "method": method}
    return resolve_config(None, options, parse_assignments(list(assignments)))


def mean(values):
    return sum(values) / len(values)


def test_indices_can_be_recomputed_by_hand_from_results_json(undisturbed):
    out, returned = undisturbed
    results = json.loads((out / "results.json").read_text())
    assert results == returned

    def score(task, domain, classes):
        found = [
            item["map50"]
            for item in results["stages"][task - 1]["slices"]
            if (item["domain"], item["classes"]) == (domain, classes)
        ]
        assert len(found) == 1
        return found[0]

    def reference(domain, classes):
        slices = results["reference"]["slices"]
        return next(item["map50"] for item in slices if (item["domain"], item["classes"]) == (domain, classes))

    first, second, third = ["0", "1", "2"], ["3", "4"], ["6", "7"]
    ri = [
        score(3, "clear", first) / score(1, "clear", first),
        score(3, "night", second) / score(2, "night", second),
    ]
    unseen = [
        (2, "clear", second),
        (2, "night", first),
        (3, "clear", second),
        (3, "night", first),
        (3, "fog", first + second),
    ]
    gi = [score(task, domain, classes) / reference(domain, classes) for task, domain, classes in unseen]
    ni = [
        score(2, "night", second) / reference("night", second),
        score(3, "fog", third) / reference("fog", third),
    ]
    joint = {(cell["domain"], cell["task"]): cell["map50"] for cell in results["reference"]["grid"]}
    final = {(cell["domain"], cell["task"]): cell["map50"] for cell in results["stages"][-1]["grid"]}
    assert len(joint) == len(final) == 9
    indices = results["indices"]["map50"]
    assert indices["avg_ri"] == pytest.approx(mean(ri))
    assert indices["avg_gi"] == pytest.approx(mean(gi))
    assert indices["avg_gi_capped"] == pytest.approx(mean([min(value, 1.0) for value in gi]))
    assert indices["rai"] == pytest.approx((mean(ri) + mean(gi)) / 2)
    assert indices["ni"] == pytest.approx(mean(ni))
    assert indices["overall"] == pytest.approx(mean([final[cell] / joint[cell] for cell in joint]))
    assert 0.05 < indices["overall"] < 1.5  # a run that learned nothing would make all of this empty


def test_a_slice_is_the_mean_of_its_classes_and_boxes_are_counted(undisturbed):
    _, results = undisturbed
    for stage in results["stages"]:
        values = {(item["domain"], item["class"]): item for item in stage["class_ap"]}
        for item in stage["slices"]:
            own = [values[item["domain"], name] for name in item["classes"]]
            assert item["map50"] == pytest.approx(mean([value["ap50"] for value in own]))
            assert item["map50_95"] == pytest.approx(mean([value["ap50_95"] for value in own]))
            assert item["boxes"] == sum(value["boxes"] for value in own) > 0
            assert item["images"] == 24


def test_the_report_and_the_detector_are_there(undisturbed):
    from ultralytics import YOLO

    out, results = undisturbed
    page = (out / "report.html").read_text()
    assert f"{results['indices']['map50']['overall']:.3f}" in page
    plain = YOLO(str(out / "detector.pt"))
    assert list(plain.names.values()) == ["0", "1", "2", "3", "4", "6", "7"]
    stored = restore_detector(out / "stages" / "3" / "model.safetensors").state()
    for key, value in plain.model.state_dict().items():
        assert torch.equal(value, stored[key]), key
    assert len((out / "results.csv").read_text().splitlines()) > 20


def test_both_losses_took_part_in_later_stages(undisturbed):
    _, results = undisturbed
    assert "distill_loss" not in results["stages"][0]["losses"][0]
    for stage in results["stages"][1:]:
        trained = [epoch for epoch in stage["losses"] if "distill_loss" in epoch]
        calibrated = [epoch for epoch in stage["losses"] if "calibration_distill_loss" in epoch]
        assert (len(trained), len(calibrated)) == (2, 2)
        assert all(epoch["distill_loss"] > 0 for epoch in trained)
        assert any(epoch["dc_loss"] > 0 for epoch in trained)
        assert all(epoch["calibration_distill_loss"] > 0 for epoch in calibrated)
        assert 0 < stage["merge"]["sign_conflict_rate"] < 1


def test_old_images_are_not_needed_again_and_a_second_run_is_equal(
    undisturbed, series, pretrained_weights, cache, tmp_path
):
    class Removing(Monitor):
        """Takes a stage's training images away as soon as the stage is closed."""

        def show(self, renderable):
            done = len(json.loads((tmp_path / "run" / "state.json").read_text())["stages"])
            domain = SERIES["tasks"][done - 1]["domain"]
            for folder in (cache / "scenes").glob("*/"):
                ours = json.loads((folder / "scenes.json").read_text())["settings"]["seed"] == 5
                if ours and (folder / domain / "train").exists():
                    shutil.move(folder / domain / "train", tmp_path / f"taken-{domain}")
                    taken.append((tmp_path / f"taken-{domain}", folder / domain / "train"))

    taken = []
    try:
        results = Learner(config(series, pretrained_weights), tmp_path / "run", Removing()).run()
    finally:
        for away, home in taken:
            shutil.move(away, home)
    assert len(taken) == 3
    assert tiny_series.timeless(results) == tiny_series.timeless(undisturbed[1])


def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(
    undisturbed, series, pretrained_weights, shared_cache, tmp_path
):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-c",
        "from duet.cli import main; main()",
        *("train", "--series", str(series), "--detector", str(pretrained_weights), "--out", str(out)),
    ]
    environment = {**os.environ, "DUET_CACHE": str(shared_cache)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while not (out / "stages" / "3" / "train" / "args.yaml").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert len(json.loads((out / "state.json").read_text())["stages"]) == 2
    finished = (out / "stages" / "2" / "model.safetensors").stat().st_mtime_ns
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert (out / "stages" / "2" / "model.safetensors").stat().st_mtime_ns == finished
    results = json.loads((out / "results.json").read_text())
    assert tiny_series.timeless(results) == tiny_series.timeless(undisturbed[1])


def test_a_finished_run_is_only_read(undisturbed, series, pretrained_weights, cache):
    out, results = undisturbed
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert Learner(config(series, pretrained_weights), out).run() == results
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before


def test_what_a_kill_left_unwritten_at_the_end_is_written(undisturbed, series, pretrained_weights, cache, tmp_path):
    out, results = undisturbed
    shutil.copytree(out, tmp_path / "run")
    for name in ("reference.json", "report.html", "detector.pt"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "results.json").write_text('{"half": ')
    assert Learner(config(series, pretrained_weights), tmp_path / "run").run() == results
    assert (tmp_path / "run" / "detector.pt").stat().st_size > 1_000_000
    assert (tmp_path / "run" / "report.html").stat().st_size == (out / "report.html").stat().st_size


def test_intervals_hold_the_values_and_may_be_asked_for_later(undisturbed, series, pretrained_weights, cache, tmp_path):
    out, results = undisturbed
    intervals, page = results["intervals"], (out / "report.html").read_text()
    assert intervals["resamples"] == 1000
    low, high = intervals["indices"]["map50"]["overall"]
    assert low < high and f"[{low:.3f}, {high:.3f}]" in page
    assert load_file(out / "bootstrap.safetensors")["map50/overall"].shape == (1000,)
    assert "bootstrap" not in results["settings"]["evaluation"]
    run = tmp_path / "run"
    shutil.copytree(out, run)
    (run / "bootstrap.safetensors").unlink()
    without = {key: value for key, value in results.items() if key != "intervals"}
    (run / "results.json").write_text(json.dumps(without))
    (run / "report.html").write_text("old")
    assert Learner(config(series, pretrained_weights), run).run() == results
    values, before = (load_file(folder / "bootstrap.safetensors") for folder in (run, out))
    assert set(values) == set(before)
    for key in values:
        np.testing.assert_array_equal(values[key], before[key])
    assert (run / "results.csv").read_text() == (out / "results.csv").read_text()
    assert (run / "report.html").read_text() == page
    fewer = Learner(config(series, pretrained_weights, "evaluation.bootstrap=50"), run).run()
    assert fewer["intervals"]["resamples"] == 50


def test_a_run_without_stored_detections_says_why_it_has_no_intervals(
    undisturbed, series, pretrained_weights, cache, tmp_path
):
    class Listening(Monitor):
        def show(self, renderable):
            said.append(renderable)

    said, run = [], tmp_path / "run"
    shutil.copytree(undisturbed[0], run)
    for name in ("bootstrap.safetensors", "reference-detections.safetensors"):
        (run / name).unlink()
    page = (run / "report.html").read_text()
    Learner(config(series, pretrained_weights), run, Listening()).run()
    assert said[0].startswith("No confidence intervals: ") and "reference-detections.safetensors: missing" in said[0]
    assert (run / "report.html").read_text() == page


def test_a_damaged_reference_in_the_cache_is_trained_again(undisturbed, series, pretrained_weights, cache, tmp_path):
    kept = [folder for folder in (cache / "trainings").iterdir() if (folder / "model.safetensors").exists()]
    for folder in kept:
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    results = Learner(config(series, pretrained_weights, method="joint"), tmp_path / "run").run()
    assert results["reference"] == undisturbed[1]["reference"]


@pytest.mark.parametrize("method", ["sequential", "frozen", "duet-paper", "joint"])
def test_every_method_runs(method, series, pretrained_weights, cache, tmp_path):
    results = Learner(config(series, pretrained_weights, method=method), tmp_path / "run").run()
    assert len(results["stages"]) == (1 if method == "joint" else 3)
    indices = results["indices"]["map50"]
    if method == "joint":
        assert indices["overall"] == pytest.approx(1.0)
        assert indices["rai"] is None
    if method == "frozen":
        assert indices["avg_ri"] == pytest.approx(1.0, abs=0.05)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_a_head_that_the_family_does_not_have_is_refused_before_anything_is_trained(series, tmp_path):
    with pytest.raises(InputError, match=r"method\.head: parallel is not available for this detector; it has rows"):
        Learner(config(series, "fcos-tiny", "method.head=parallel"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "assignments",
    [
        ["method.head=parallel"],
        ["method.batch_norm=merge", "method.towers=merge", "evaluation.reference=none"],
        ["method.batch_norm=current", "method.calibration_epochs=1"],
        ["method.batch_norm=recalibrate", "method.merge.name=ties"],
        ["method.merge=null", "evaluation.reference=individual"],
    ],
    ids=lambda assignments: assignments[0],
)
def test_every_policy_runs(assignments, series, pretrained_weights, cache, tmp_path):
    made = config(series, pretrained_weights, "train.epochs=1", *assignments)
    results = Learner(made, tmp_path / "run").run()
    assert len(results["stages"]) == 3
    if made.evaluation.reference == "none":
        assert results["indices"]["map50"]["overall"] is None
    else:
        assert results["indices"]["map50"]["overall"] > 0
    calibrated = [epoch for epoch in results["stages"][1]["losses"] if "calibration_cls_loss" in epoch]
    assert len(calibrated) == made.method.calibration_epochs


def test_a_later_stage_looks_at_the_pictures_that_it_trains_on_and_at_no_other(tmp_path, monkeypatch):
    taken = []

    def stop(item, *arguments):
        taken.append(item)
        raise InputError("enough")

    monkeypatch.setenv("DUET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("duet.learner.later_stage", stop)
    scenes = {"seed": 73, "train_scenes": 12, "test_scenes": 2}
    tiny = {**tiny_series.SERIES, "scenes": scenes, "unlabelled_images": "drop"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    (tmp_path / "nano.yaml").write_text(yaml.safe_dump(tiny_series.DETECTOR))
    learner = Learner(
        config(tmp_path / "tiny.yaml", tmp_path / "nano.yaml", "evaluation.reference=none"), tmp_path / "run"
    )
    with pytest.raises(InputError, match="enough"):
        learner.run()
    (item,) = taken
    everything = learner.domains["night"].train()
    own = own_labels(everything, ("3", "4"), "drop")
    assert 0 < len(own) < len(everything)
    assert [image.path for image in item.images] == [image.path for image in own]
    assert {name for image in item.images for name in image.labels} == {"3", "4"}
    assert item.statistics == colour_statistics(own) != colour_statistics(everything)
