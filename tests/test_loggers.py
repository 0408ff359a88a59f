"""Every logger gets every epoch and every stage once, in one experiment, also over a kill."""

import json
import logging
import math
import os
import time
from pathlib import Path

import pytest
import yaml
from evaluation.hand_written_run import three_tasks

from duet.config import RunConfig, parse_assignments
from duet.detectors.base import StageProgress
from duet.errors import InputError
from duet.evaluation.indices import compute_indices
from duet.learner import Learner
from duet.log_targets import TARGETS, RunNotes, TargetKind, open_target, plain_name
from duet.loggers import LoggedMonitor, RunLoggers, scores_of
from duet.methods import method_settings
from duet.monitor import Monitor
from duet.resolve import resolve_config


class Remembering:
    """A target that keeps what it is told, and says where another process should go on."""

    def __init__(self, notes, identity, next_step):
        self.notes, self.opened_with = notes, (identity, next_step)
        self.identity, self.rows, self.closed, self.broken = identity or "first", [], None, False

    def log(self, values, step):
        if self.broken:
            raise ConnectionError("the server is gone")
        self.rows.append((step, dict(values)))

    def close(self, succeeded):
        self.closed = succeeded


@pytest.fixture
def opened(monkeypatch):
    """The targets that were opened, in order; they stand in for all three loggers."""
    made = []

    def open_one(*arguments):
        made.append(Remembering(*arguments))
        return made[-1]

    for name in TARGETS:
        monkeypatch.setitem(TARGETS, name, TargetKind("json", name, open_one))
    return made


def make_config(*names, epochs=2, **method):
    settings = method_settings("duet").model_copy(update={"calibration_epochs": 0, **method})
    return RunConfig(method=settings, train={"epochs": epochs}, loggers=names)


def train(loggers, stage, epochs=2, steps=3, losses=None):
    """The steps of one stage, as a detector reports them; an epoch's losses grow towards their last value."""
    loggers.begin(stage)
    for step in range(1, epochs * steps + 1):
        epoch, share = (step - 1) // steps + 1, ((step - 1) % steps + 1) / steps
        values = {"box_loss": (10 * stage + epoch) * share, **(losses or {})}
        loggers.train_step(StageProgress(step, epochs * steps, epoch, epochs, values, {"lr/pg0": 0.5}))


def document(stages):
    """Results after some stages; stage n's epochs have the losses that ``train`` reports."""
    results = three_tasks()
    results["stages"] = [
        {**stage, "merge": {"sign_conflict_rate": 0.25}, "timing": {"train": 3.0}}
        | {"losses": [{"box_loss": 10.0 * number + epoch} for epoch in (1, 2)]}
        for number, stage in enumerate(results["stages"][:stages], start=1)
    ]
    results["series"]["classes"] = ["a", "b", "c", "d"]
    results["indices"] = {metric: compute_indices(results, metric).to_dict() for metric in ("map50", "map50_95")}
    return results


def test_epochs_count_on_over_the_stages_and_carry_losses_and_rates(opened, tmp_path):
    with RunLoggers(make_config("tensorboard"), tmp_path, "run") as loggers:
        train(loggers, 1)
        loggers.finish(1, document(1))
        train(loggers, 2)
        loggers.finish(2, document(2))
    (target,) = opened
    epochs = [(step, values) for step, values in target.rows if "stage" in values]
    assert epochs == [
        (1, {"train/box_loss": 11.0, "lr/pg0": 0.5, "stage": 1}),
        (2, {"train/box_loss": 12.0, "lr/pg0": 0.5, "stage": 1}),
        (3, {"train/box_loss": 21.0, "lr/pg0": 0.5, "stage": 2}),
        (4, {"train/box_loss": 22.0, "lr/pg0": 0.5, "stage": 2}),
    ]
    assert target.closed is True


def test_scores_stand_at_the_last_step_of_their_stage(opened, tmp_path):
    with RunLoggers(make_config("tensorboard"), tmp_path, "run") as loggers:
        for stage in (1, 2, 3):
            loggers.finish(stage, document(stage))
    scored = {step: values for step, values in opened[0].rows if "stage" not in values}
    assert sorted(scored) == [2, 4, 6]
    assert scored[2]["map50/new/X_1-1"] == 0.80
    assert scored[4]["map50/old/X_1-1"] == 0.83
    assert scored[4]["map50/unseen/X_2-3"] == 0.37
    assert scored[4]["map50_95/new/Y_2-3"] == pytest.approx(0.49)
    assert scored[4]["merge/sign_conflict_rate"] == 0.25
    assert scored[6]["seconds/train"] == 3.0
    indices = document(3)["indices"]
    for metric in ("map50", "map50_95"):
        for name in ("overall", "rai", "ni", "avg_ri", "avg_gi", "forgetting"):
            assert scored[6][f"{metric}/{name}"] == indices[metric][name], name


def test_what_has_no_value_is_left_out():
    values = scores_of(document(1), 1)
    assert "map50/rai" not in values  # there is no RAI after one stage
    assert all(type(value) is float and math.isfinite(value) for value in values.values())
    assert "map50/tasks" not in values


def test_a_joint_run_without_roles_logs_its_grid():
    results = document(3)
    results["stages"] = [{**results["stages"][2], "slices": [], "merge": None, "task": 0}]
    values = scores_of(results, 1)
    cells = {name: value for name, value in values.items() if name.startswith("map50/grid/")}
    assert len(cells) == 9
    assert cells["map50/grid/Z_4-4"] == results["stages"][0]["grid"][8]["map50"]
    assert "merge/sign_conflict_rate" not in values


def test_calibration_epochs_follow_under_their_own_names(opened, tmp_path):
    config = make_config("mlflow", epochs=1, calibration_epochs=2)
    with RunLoggers(config, tmp_path, "run") as loggers:
        train(loggers, 1, epochs=1)
        train(loggers, 2, epochs=1)
        for epoch in (1, 2):
            loggers.train_step(StageProgress(epoch, 2, epoch, 2, {"cls_loss": 1.0 * epoch}))
        train(loggers, 3, epochs=1)
    assert [(step, next(iter(values))) for step, values in opened[0].rows] == [
        (1, "train/box_loss"),
        (2, "train/box_loss"),
        (3, "train/calibration_cls_loss"),
        (4, "train/calibration_cls_loss"),
        (5, "train/box_loss"),
    ]


def test_the_next_process_goes_on_where_the_last_one_was_killed(opened, tmp_path):
    config = make_config("wandb")
    killed = RunLoggers(config, tmp_path, "run")
    train(killed, 1)
    killed.finish(1, document(1))
    train(killed, 2, epochs=1)  # of two; then the process dies without a word
    with RunLoggers(config, tmp_path, "run") as loggers:
        assert not loggers.is_behind(1)
        train(loggers, 2)
        loggers.finish(2, document(2))
    first, second = opened
    assert second.opened_with == ("first", 4)
    assert [step for step, values in first.rows if "stage" in values] == [1, 2, 3]
    assert [step for step, values in second.rows if "stage" in values] == [4]
    assert [step for step, values in second.rows if "stage" not in values] == [4]


def test_a_logger_that_joins_later_is_told_what_was_trained_before(opened, tmp_path):
    with RunLoggers(make_config("mlflow"), tmp_path, "run") as loggers:
        loggers.finish(1, document(1))
    with RunLoggers(make_config("mlflow", "tensorboard"), tmp_path, "run") as loggers:
        assert loggers.is_behind(1)
        loggers.finish(1, document(1))
    old, again, late = opened
    assert again.rows == []
    assert late.rows == old.rows
    assert late.opened_with == (None, 1)


def test_another_run_in_the_same_folder_begins_a_new_experiment(opened, tmp_path):
    for fingerprint in ("one", "other"):
        with RunLoggers(make_config("mlflow"), tmp_path, fingerprint) as loggers:
            train(loggers, 1)
    assert [target.opened_with for target in opened] == [(None, 1), (None, 1)]


@pytest.mark.parametrize("content", ["{", "[]", '{"fingerprint": "run", "targets": {"mlflow": {"what": 1}}}'])
def test_a_damaged_record_begins_anew(content, opened, tmp_path):
    (tmp_path / "loggers.json").write_text(content)
    with RunLoggers(make_config("mlflow"), tmp_path, "run") as loggers:
        train(loggers, 1)
    assert opened[0].opened_with == (None, 1)


def test_a_logger_that_fails_is_said_and_does_not_end_the_training(opened, tmp_path, caplog):
    with caplog.at_level(logging.WARNING), RunLoggers(make_config("mlflow", "wandb"), tmp_path, "run") as loggers:
        train(loggers, 1)
        opened[0].broken = True
        train(loggers, 2)
    assert [record.getMessage() for record in caplog.records] == [
        "logger 'mlflow' failed and is off until the run is started again: the server is gone"
    ]
    assert [step for step, _ in opened[1].rows] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "loggers.json").read_text())["targets"]["mlflow"]["epochs"] == 2


def test_a_failed_run_is_closed_as_failed(opened, tmp_path):
    with pytest.raises(RuntimeError), RunLoggers(make_config("mlflow"), tmp_path, "run") as loggers:
        train(loggers, 1)
        raise RuntimeError("no")
    assert opened[0].closed is False


def test_steps_of_a_reference_are_not_logged(opened, tmp_path):
    loggers = RunLoggers(make_config("mlflow"), tmp_path, "run")
    loggers.train_step(StageProgress(2, 2, 1, 1, {"box_loss": 1.0}))
    assert opened == []
    assert list(tmp_path.iterdir()) == []


def test_a_monitor_with_loggers_shows_and_logs(opened, tmp_path):
    class Counting(Monitor):
        steps = 0

        def train_step(self, progress):
            self.steps += 1

    shown, loggers = Counting(), RunLoggers(make_config("mlflow"), tmp_path, "run")
    train(loggers, 1, epochs=1)
    LoggedMonitor(shown, loggers).train_step(StageProgress(6, 6, 2, 2, {"box_loss": 12.0}))
    assert (shown.steps, len(opened[0].rows)) == (1, 2)


def test_a_missing_package_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(TARGETS, "mlflow", TargetKind("no_such_package", "mlflow-skinny", Remembering))
    with pytest.raises(InputError, match="'mlflow' needs a package that is not installed: pip install mlflow-skinny"):
        RunLoggers(make_config("mlflow"), tmp_path, "run")


def test_what_cannot_be_opened_is_one_sentence(monkeypatch, tmp_path):
    def refuse(*arguments):
        raise ConnectionError("no server\nat all")

    monkeypatch.setitem(TARGETS, "wandb", TargetKind("json", "wandb", refuse))
    with pytest.raises(InputError, match=r"^logger 'wandb' cannot be opened: no server$"):
        open_target("wandb", RunNotes(tmp_path, "demo", "run", {}), None, 1)


def test_names_are_such_that_every_logger_takes_them():
    assert plain_name("map50/old/Straße & Büro_1-3") == "map50/old/Stra_e___B_ro_1-3"


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("[tensorboard, mlflow]", ("tensorboard", "mlflow")),
        ("tensorboard", ("tensorboard",)),
        ("[wandb, wandb]", ("wandb",)),
        ("[]", ()),
    ],
)
def test_loggers_of_a_configuration(value, names):
    assert resolve_config(None, {}, parse_assignments([f"loggers={value}"])).loggers == names


def test_an_unknown_logger_is_refused():
    with pytest.raises(InputError, match=r"'loggers.0' is 'tensorbord': input should be 'tensorboard', 'mlflow' or"):
        resolve_config(None, {}, parse_assignments(["loggers=[tensorbord]"]))


# The real packages.


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads back."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_one_axis_back_and_no_step_twice(tmp_path):
    pytest.importorskip("tensorboard")
    config = make_config("tensorboard")
    killed = RunLoggers(config, tmp_path, "run")
    train(killed, 1)
    killed.finish(1, document(1))
    # An epoch that reached the event file, but not the record of it.
    killed._targets["tensorboard"].log({"train/box_loss": 99.0}, 3)
    killed._targets["tensorboard"].close(False)
    with RunLoggers(config, tmp_path, "run") as loggers:
        train(loggers, 2)
        loggers.finish(2, document(2))
    found = scalars(tmp_path / "tensorboard")
    assert found["train/box_loss"] == [(1, 11.0), (2, 12.0), (3, 21.0), (4, 22.0)]
    assert found["stage"] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]
    assert found["map50/old/X_1-1"] == [(4, pytest.approx(0.83))]


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A client of a local MLflow file store."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    return MlflowClient()


def only_run(store):
    (experiment,) = [item for item in store.search_experiments() if item.name != "Default"]
    (run,) = store.search_runs([experiment.experiment_id])
    return experiment.name, run


def history(store, run, name):
    return sorted((point.step, point.value) for point in store.get_metric_history(run.info.run_id, name))


def test_mlflow_has_one_run_with_settings_that_a_later_process_goes_on_with(store, tmp_path):
    config = make_config("mlflow")
    with pytest.raises(KeyboardInterrupt), RunLoggers(config, tmp_path / "run", "run") as loggers:
        train(loggers, 1)
        loggers.finish(1, document(1))
        train(loggers, 2, epochs=1)
        raise KeyboardInterrupt
    assert only_run(store)[1].info.status == "FAILED"
    with RunLoggers(config, tmp_path / "run", "run") as loggers:
        train(loggers, 2)
        loggers.finish(2, document(2))
    experiment, run = only_run(store)
    assert (experiment, run.info.run_name, run.info.status) == ("duet-demo", "run", "FINISHED")
    assert run.data.params["train.epochs"] == "2"
    assert run.data.params["method.name"] == "duet"
    assert history(store, run, "train/box_loss") == [(1, 11.0), (2, 12.0), (3, 21.0), (4, 22.0)]
    assert history(store, run, "map50/old/X_1-1") == [(4, 0.83)]


def test_a_run_that_mlflow_has_no_more_is_one_sentence(store, tmp_path):
    with pytest.raises(InputError, match=r"logger 'mlflow' cannot be opened: .*0123"):
        open_target("mlflow", RunNotes(tmp_path, "demo", "run", {}), "0123456789abcdef0123456789abcdef", 1)


@pytest.mark.slow
def test_weights_and_biases_writes_offline_into_the_run_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = make_config("wandb")
    with RunLoggers(config, tmp_path, "run") as loggers:
        train(loggers, 1)
        loggers.finish(1, document(1))
    with RunLoggers(config, tmp_path, "run") as loggers:
        train(loggers, 2)
        loggers.finish(2, document(2))
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({path.name for path in files}) == 1  # the second process goes on with the same run
    end = time.monotonic() + 60  # its own process writes them, on a busy machine later
    while b"map50/old/X_1-1" not in files[1].read_bytes() and time.monotonic() < end:
        time.sleep(0.1)
    first, second = (path.read_bytes() for path in files)
    assert b"train/box_loss" in first
    assert b"map50/new/X_1-1" in first
    assert b"map50/old/X_1-1" not in first
    assert b"map50/old/X_1-1" in second
    assert b"train.epochs" in first or b'"epochs"' in first


# Real training.


SERIES = {
    "name": "tiny",
    "scenes": {"seed": 9, "train_scenes": 8, "test_scenes": 6},
    "other_labels": "drop",
    "unlabelled_images": "keep",
    "train": {"epochs": 1, "image_size": 64, "batch": 4, "threads": 1},
    "evaluation": {"reference": "none"},
    "tasks": [{"domain": "clear", "classes": ["0", "1", "2"]}, {"domain": "night", "classes": ["3", "4"]}],
}


class Stopping(Monitor):
    """Interrupts a run at a step of its second stage."""

    def begin(self, title, total):
        self.second = title.startswith("stage 2/2")

    def train_step(self, progress):
        if self.second and progress.epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["yolo11n.yaml", "fcos-tiny"])
def test_a_run_that_was_stopped_logs_every_epoch_and_stage_once(detector, cache, store, tmp_path):
    from ultralytics.utils import SETTINGS

    series = tmp_path / "tiny.yaml"
    series.write_text(yaml.safe_dump(SERIES))
    options = {"series": str(series), "detector": detector}
    kept = ["loggers=[tensorboard, mlflow]", "train.epochs=2", "method.calibration_epochs=1"]
    config = resolve_config(None, options, parse_assignments(kept))
    user_settings = Path(SETTINGS.file).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        Learner(config, tmp_path / "run", Stopping()).run()
    results = Learner(config, tmp_path / "run").run()

    losses = [epoch for stage in results["stages"] for epoch in stage["losses"]]
    assert len(losses) == 5
    assert any("dc_weighted" in epoch for epoch in losses)
    assert any("distill_loss" in epoch for epoch in losses)
    expected = {}
    for step, epoch in enumerate(losses, start=1):
        for name, value in epoch.items():
            expected.setdefault(f"train/{name}", []).append((step, pytest.approx(value, rel=1e-6)))
    scored = {name: value for name, value in results["indices"]["map50"].items() if type(value) is float}
    _, run = only_run(store)
    found = scalars(tmp_path / "run" / "tensorboard")
    for name, values in expected.items():
        assert found[name] == values, name
        assert history(store, run, name) == values, name
    assert {"bwt", "avg_ri"} <= set(scored) or results["indices"]["map50"]["avg_ri"] is None
    for name, value in scored.items():
        assert found[f"map50/{name}"][-1] == (5, pytest.approx(value, rel=1e-6)), name
        assert history(store, run, f"map50/{name}")[-1] == (5, value), name
    for row in results["stages"][1]["slices"]:
        name = next(name for name in found if name.startswith(f"map50/{row['role']}/{row['domain']}_"))
        assert found[name][-1][0] == 5
    assert [step for step, _ in found["lr/pg0"]] == [1, 2, 3, 4, 5]
    assert [value for _, value in found["stage"]] == [1, 1, 2, 2, 2]
    assert Path(SETTINGS.file).read_bytes() == user_settings
    assert not Path("mlruns").exists() or os.environ["MLFLOW_TRACKING_URI"].endswith("mlruns")

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    Learner(config, tmp_path / "run").run()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
