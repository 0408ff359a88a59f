"""Several processes that train together: what is refused, what is averaged, and that a run ends as one process's does.

The processes are real ones on CPUs with gloo; ``process_stage.py`` is what they run in the gradient tests.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from tiny_series import timeless

from duet import processes
from duet.config import RunConfig, TrainSettings, parse_assignments
from duet.detectors.families import load_pretrained
from duet.errors import InputError
from duet.learner import Learner
from duet.methods import method_settings
from duet.resolve import resolve_config

HERE = Path(__file__).resolve().parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
SERIES = {
    "name": "tiny",
    "scenes": {"seed": 9, "train_scenes": 9, "test_scenes": 6},
    "other_labels": "drop",
    "unlabelled_images": "keep",
    "train": {"epochs": 2, "image_size": 64, "batch": 4, "threads": 1, "lr0": 0.01, "warmup_epochs": 0},
    "evaluation": {"reference": "none"},
    "tasks": [{"domain": "clear", "classes": ["0", "1", "2"]}, {"domain": "night", "classes": ["3", "4"]}],
}


def run(*command, code=0, **environment):
    """Run a command of several processes; what it printed, and what it printed as error."""
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent), **environment}
    settings.pop("DUET_TRACEBACK", None)
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=settings)
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done.stdout, done.stderr


# Settings.


@pytest.mark.parametrize(
    ("values", "count", "device"),
    [
        ({}, 1, "cpu"),
        ({"processes": 2}, 2, "cpu"),
        ({"device": "0,1"}, 2, "0,1"),
        ({"device": [0, 1, 3]}, 3, "0,1,3"),
        ({"device": 1}, 1, "1"),
    ],
)
def test_processes_of_settings(values, count, device):
    settings = TrainSettings(**values)
    assert (settings.process_count, settings.device) == (count, device)
    assert settings.in_one_process().process_count == 1


def test_one_process_leaves_the_keys_of_runs_and_cached_trainings_as_they_were():
    assert "processes" not in TrainSettings().keyed(exclude={"workers"})
    method = method_settings("duet")
    assert "processes" not in RunConfig(method=method).deciding()["train"]
    several = RunConfig(method=method, train={"processes": 2})
    assert several.deciding()["train"]["processes"] == 2
    assert RunConfig.model_validate(several.model_dump()) == several


@pytest.mark.parametrize("device", ["0,", ",1", "cpu,cpu", "0 1", "cuda:0,1"])
def test_a_list_of_devices_that_is_none_is_refused(device):
    with pytest.raises(InputError, match=r"key 'train\.device' is"):
        resolve_config(None, {}, {"train": {"device": device}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"processes": 3}, r"train\.batch is 16: 3 processes cannot share it equally"),
        ({"processes": 2, "device": "0"}, r"2 processes need train\.device cpu or a list of 2 devices, not '0'"),
        ({"processes": 2, "device": "mps"}, "not 'mps'"),
        ({"device": "1,1"}, "'1,1': a device is named twice"),
        ({"device": "0,1", "processes": 3}, r"train\.processes is 3, but train\.device names 2 devices"),
        ({"device": "98,99"}, r"'98,99', but this machine has \d+ CUDA devices"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_starts(values, message):
    with pytest.raises(InputError, match=message):
        processes.lead(TrainSettings(**values), pytest.fail)


def test_a_single_process_just_does_the_work():
    assert processes.lead(TrainSettings(), lambda: "done") == "done"


def test_more_processes_than_there_are_have_to_be_started():
    with pytest.raises(processes.NeedsProcesses, match="torchrun --nproc_per_node 2") as needed:
        processes.lead(TrainSettings(processes=2), pytest.fail)
    assert needed.value.count == 2


def test_another_number_of_processes_than_torchrun_started_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="ask for 4 processes, but torchrun started 2"):
        processes.lead(TrainSettings(processes=4), pytest.fail)


def test_a_training_in_fewer_processes_than_its_settings_say_is_refused():
    with pytest.raises(InputError, match=r"ask for 2 processes, but this training has 1; `duet train`"):
        processes.refuse_other_count(TrainSettings(processes=2))


def test_a_process_that_torchrun_started_alone_is_an_ordinary_one(monkeypatch):
    for name, value in (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    processes.forget_a_single_process()
    assert not {"WORLD_SIZE", "RANK", "LOCAL_RANK"} & set(os.environ)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    processes.forget_a_single_process()
    assert (processes.started(), processes.rank()) == (2, 1)


def test_cores_are_shared(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert processes.threads_of(TrainSettings(processes=2)) == 4
    assert processes.threads_of(TrainSettings(processes=2, threads=3)) == 3
    assert processes.threads_of(TrainSettings(processes=16)) == 1


def test_a_family_with_a_loop_of_its_own_trains_in_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("DUET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SERIES))
    options = {"series": str(tmp_path / "tiny.yaml"), "detector": "fcos-tiny"}
    config = resolve_config(None, options, parse_assignments(["train.processes=2"]))
    with pytest.raises(InputError, match="detectors of the family 'fcos' train in one process, not in 2"):
        Learner(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert load_pretrained("yolo11n.yaml").shares_training


def test_other_commands_are_refused_under_torchrun(monkeypatch, capsys):
    from duet.cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "is_first_to_fail", lambda: True)
    monkeypatch.setattr(sys, "argv", ["duet", "summary", "runs/demo"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "only `duet train` runs in several processes" in capsys.readouterr().err


# Gradients.


@pytest.fixture(scope="module", params=["yolo", "rtdetr"])
def stages(request, tmp_path_factory):
    """The folder in which one process and two have written what they computed."""
    folder = tmp_path_factory.mktemp(request.param)
    script = [str(HERE / "process_stage.py"), request.param, str(folder)]
    run(sys.executable, *script)
    run(*TORCHRUN, *script)
    return request.param, folder


def gradient(folder, terms, count, rank):
    return torch.load(folder / f"gradient-{terms}-{count}-{rank}.pt")


def distance(one, other):
    """Norm of the difference / norm."""
    assert one.keys() == other.keys()
    parts = [(one[key].double() - other[key].double()).square().sum() for key in one]
    return math.sqrt(sum(parts) / sum(value.double().square().sum() for value in one.values()))


@pytest.mark.slow
def test_the_step_of_two_processes_is_that_of_one_on_the_whole_batch(stages):
    _, folder = stages
    alone = gradient(folder, "all", 1, 0)
    first, second = gradient(folder, "all", 2, 0), gradient(folder, "all", 2, 1)
    assert distance(first, second) == 0.0
    assert distance(alone, first) < 1e-4
    (epoch,), (shared,) = (torch.load(folder / f"outcome-all-{count}.pt")["losses"] for count in (1, 2))
    assert {"distill_loss", "dc_loss", "ewc_loss"} < set(epoch)
    assert all(value > 0 for value in epoch.values())
    assert shared == pytest.approx(epoch, rel=1e-3)


@pytest.mark.slow
def test_directional_consistency_counts_once(stages):
    family, folder = stages
    constants = torch.load(folder / "constants.pt")
    found = gradient(folder, "dc", 2, 0)
    scale = 1e12 * (4 if family == "yolo" else 1)  # Ultralytics' YOLO loss is a sum over the images of the batch
    expected = {}
    for key, direction in constants["direction"].items():
        update = constants["state"][key] - constants["previous"][key]
        expected[key] = -scale * direction * (update * direction < 0)  # of relu(-u v) by the parameter
    assert len(expected) > 50
    assert distance(expected, {key: found[key] for key in expected}) < 1e-5


@pytest.mark.slow
def test_each_process_has_the_teacher_and_its_own_images(stages):
    _, folder = stages
    alone, *both = (
        torch.load(folder / f"gradient-all-{count}-{rank}.notes") for count, rank in ((1, 0), (2, 0), (2, 1))
    )
    assert both[0]["teacher"] == both[1]["teacher"] == alone["teacher"]
    assert (alone["batch"], both[0]["batch"], both[1]["batch"]) == (4, 2, 2)
    assert sorted(both[0]["indices"] + both[1]["indices"]) == [0, 1, 2, 3]
    assert both[0]["process"] != both[1]["process"]


@pytest.mark.slow
def test_fisher_information_is_the_mean_over_every_image_once(stages):
    _, folder = stages  # three different images: one process has two of them
    one, two = (torch.load(folder / f"outcome-all-{count}.pt")["fisher"] for count in (1, 2))
    assert distance(one, two) < 1e-4


@pytest.mark.slow
def test_only_the_first_process_writes(stages):
    _, folder = stages
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {
        *("data-1", "data-2", "data-teacher"),
        *("train-all-1", "train-all-2", "train-dc-1", "train-dc-2"),
    }


# Whole runs.


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """(folder) → the options of a run into it."""
    place = tmp_path_factory.mktemp("runs")
    (place / "tiny.yaml").write_text(yaml.safe_dump(SERIES))

    def options(out, *more):
        return ("train", "--series", str(place / "tiny.yaml"), "--detector", "yolo11n.yaml", "--out", str(out), *more)

    return options


@pytest.fixture(scope="module")
def undisturbed(command, shared_cache, tmp_path_factory):
    """A run of two processes under torchrun."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    printed, _ = run(*TORCHRUN, "-m", "duet.cli", *command(out), DUET_CACHE=str(shared_cache))
    return out, printed


def numbers(out):
    """Results without durations and memory."""
    return timeless(json.loads((out / "results.json").read_text()))


@pytest.mark.slow
def test_a_run_of_two_processes_has_every_loss_and_is_shown_once(undisturbed):
    out, printed = undisturbed
    results = numbers(out)
    assert [len(stage["losses"]) for stage in results["stages"]] == [2, 2 + method_settings("duet").calibration_epochs]
    for epoch in results["stages"][1]["losses"][:2]:
        assert {"box_loss", "cls_loss", "dfl_loss", "distill_loss", "dc_loss"} < set(epoch)
        assert all(math.isfinite(value) for value in epoch.values())
    assert results["stages"][1]["losses"][1]["dc_loss"] > 0
    assert results["settings"]["train"]["processes"] == 2
    assert len(re.findall("^Report: ", printed, flags=re.M)) == 1
    assert len(re.findall("^stage 2/2: night$", printed, flags=re.M)) == 1
    assert {path.name for path in (out / "stages").iterdir()} == {"1", "2"}
    assert (out / "detector.pt").is_file()


@pytest.mark.slow
def test_a_killed_run_started_by_the_command_itself_ends_with_the_same_numbers(undisturbed, command, tmp_path):
    out = tmp_path / "run"
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent), "DUET_CACHE": str(tmp_path)}
    call = [sys.executable, "-m", "duet.cli", *command(out, "--set", "train.processes=2")]
    with subprocess.Popen(call, env=settings, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        deadline = time.monotonic() + 600
        while not (out / "stages" / "2" / "train" / "args.yaml").exists():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        kill_all(process.pid)
    assert len(json.loads((out / "state.json").read_text())["stages"]) == 1
    run(*call, DUET_CACHE=str(tmp_path))
    assert numbers(out) == numbers(undisturbed[0])


def kill_all(leader):
    """Kill a process and all that it started, at once."""
    children = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in children.splitlines()]
    family = {leader}
    while more := {pid for pid, parent in pairs if parent in family} - family:
        family |= more
    for pid in family:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_failure_in_one_process_ends_all_with_one_sentence(rank, command, shared_cache, tmp_path):
    script = tmp_path / "crash.py"
    script.write_text(
        "from duet import processes\n"
        "from duet.cli import main\n"
        "from duet.detectors.ultralytics_training import StageTraining\n"
        "def crash(trainer):\n"
        f"    if processes.rank() == {rank}:\n"
        "        raise RuntimeError('the cable was pulled')\n"
        "    step(trainer)\n"
        "step, StageTraining.optimizer_step = StageTraining.optimizer_step, crash\n"
        "main()\n"
    )
    options = command(tmp_path / "run", "--seed", "5")
    _, error = run(*TORCHRUN, str(script), *options, code=1, DUET_CACHE=str(shared_cache))
    said = [line for line in error.splitlines() if line.startswith("Error: ")]
    where = "process 1 of 2: " if rank else ""
    assert said == [f"Error: {where}the cable was pulled (DUET_TRACEBACK=1 shows where)"]
    assert json.loads((tmp_path / "run" / "state.json").read_text())["stages"] == []
    assert not (tmp_path / "run" / "detector.pt").exists()


@pytest.mark.slow
def test_bad_input_is_said_once_by_the_command_that_starts_the_processes(command, shared_cache, tmp_path):
    options = command(tmp_path / "run", "--set", "train.processes=2", "--detector", "fcos-tiny")
    _, error = run(sys.executable, "-m", "duet.cli", *options, code=2, DUET_CACHE=str(shared_cache))
    lines = [line for line in error.splitlines() if line.strip()]
    assert lines == ["Error: detectors of the family 'fcos' train in one process, not in 2"]
