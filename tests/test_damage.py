"""Damaged files, full disks and numbers that explode are each named in a sentence; what was good stays."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors import SafetensorError
from tiny_series import DETECTOR, SERIES, content, short_report
from typer.testing import CliRunner

from duet.artefact import artefact_is_whole, open_artefact
from duet.cli import app
from duet.config import parse_assignments
from duet.detectors.families import load_pretrained, restore_detector, store_detector
from duet.detectors.fcos import FcosDetector
from duet.disk import DiskError, remove_leftovers
from duet.errors import InputError, TrainingStopped
from duet.learner import Learner
from duet.resolve import resolve_config
from duet.soundness import refuse_exploded, refuse_not_finite
from duet.state import write_atomic, write_text


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """A function that opens a learner for the tiny series; further arguments are options of ``--set``."""
    place = tmp_path_factory.mktemp("damage")
    write_text(place / "tiny.yaml", yaml.safe_dump(SERIES))
    write_text(place / "nano.yaml", yaml.safe_dump(DETECTOR))

    def learner(out, *assignments):
        options = {"series": str(place / "tiny.yaml"), "detector": str(place / "nano.yaml"), "method": "duet"}
        given = parse_assignments(["evaluation.reference=none", *assignments])
        return Learner(resolve_config(None, options, given), out)

    return learner


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory, shared_cache):
    """A finished run."""
    out = tmp_path_factory.mktemp("run") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("duet.report.html.write_report", short_report)
        make(out).run()
    return out


@pytest.fixture
def run(whole, tmp_path, monkeypatch):
    """A copy of it, to be damaged."""
    monkeypatch.setattr("duet.report.html.write_report", short_report)
    return shutil.copytree(whole, tmp_path / "run")


def flip(path, place):
    """Turn one bit over; places count from the end when negative."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def again(run, make):
    make(run).run()


def inspect(run, make):
    open_artefact(run)


def predict(run, make):
    load_pretrained(str(run / "detector.pt"))


def stage(run, make):
    restore_detector(run / "stages" / "1" / "model.safetensors")


MODEL, STORED = "stages/1/model.safetensors", "detector.safetensors"
DAMAGES = [
    (lambda run: cut(run / "state.json"), again, r"state\.json, line \d+: not JSON"),
    (lambda run: write_text(run / "state.json", "{}"), again, r"state\.json: damaged, it is not a run's record"),
    (lambda run: write_text(run / "state.json", '{"fingerprint": 1, "files": 2, "stages": []}'), again,
     r"state\.json: damaged, its files or stages are of another form"),
    (lambda run: (run / MODEL).unlink(), again, r"stages/1/model\.safetensors: missing, although stage 1"),
    (lambda run: flip(run / MODEL, -1), again, r"stages/1/model\.safetensors: damaged, its sha256 .* from a copy"),
    (lambda run: flip(run / MODEL, -1), stage, r"model\.safetensors: damaged, its content is not what was written"),
    (lambda run: flip(run / "stages/2/metrics.json", 50), again, r"stages/2/metrics\.json: damaged, its sha256"),
    (lambda run: flip(run / "data.json", 20), again, r"data\.json: damaged, its sha256 .* made anew"),
    (lambda run: (cut(run / "reference.json"), (run / "results.json").unlink()), again, r"reference\.json: damaged"),
    (lambda run: flip(run / STORED, -5), inspect, r"detector\.safetensors: damaged, its content is not what"),
    (lambda run: cut(run / STORED), inspect, r"detector\.safetensors: not a readable safetensors file"),
    (lambda run: flip(run / "detector.pt", 200_000), predict, r"detector\.pt: damaged, .* another checksum"),
    (lambda run: cut(run / "detector.pt"), predict, r"detector\.pt: refused as a checkpoint; it is damaged"),
    (lambda run: write_text(run / "detector.pt", ""), predict, r"detector\.pt: refused as a checkpoint; it is damaged"),
]  # fmt: skip


@pytest.mark.slow
def test_damaged_files_are_each_named_in_a_sentence_of_their_own(whole, make, cache, tmp_path):
    sentences = set()
    for number, (damage, use, message) in enumerate(DAMAGES):
        run = shutil.copytree(whole, tmp_path / str(number))
        damage(run)
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
        with pytest.raises(InputError, match=message) as refused:
            use(run, make)
        assert "\n" not in str(refused.value)
        sentences.add(str(refused.value).replace(str(run), ""))
        assert {path: path.read_bytes() for path in before} == before
    assert len(sentences) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results.json", "results.csv", "report.html", "config.yaml", "detector.pt", STORED])
def test_what_can_be_made_anew_is(name, run, whole, make, cache):
    flip(run / name, -30 if name != "report.html" else 0)
    make(run).run()
    assert content(run) == content(whole)
    assert artefact_is_whole(run)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_stage_and_the_last_good_state_stays(
    whole, make, cache, tmp_path, monkeypatch
):
    own = FcosDetector.own_losses

    def broken(self, images, samples, outputs, first_class):
        losses = own(self, images, samples, outputs, first_class)
        return {name: value * float("nan" if len(self.classes) == 5 else 1) for name, value in losses.items()}

    run = tmp_path / "run"
    monkeypatch.setattr("duet.report.html.write_report", short_report)
    with monkeypatch.context() as patch:
        patch.setattr(FcosDetector, "own_losses", broken)
        with pytest.raises(TrainingStopped) as stopped:
            make(run).run()
    first, kept, way, anew = str(stopped.value).splitlines()
    assert first.startswith("stage 2/2 (night): epoch 1: ") and "is not finite; this stage was not kept" in first
    assert "the detector after stage 1" in kept
    assert way.endswith("--classes 3 4 --domain night --out NEW --set train.lr0=0.00025")
    assert anew.endswith("another --out and --set train.lr0=0.00025")
    assert artefact_is_whole(run) and open_artefact(run).detector.classes == ("0", "1", "2")
    assert not (run / "stages" / "2").exists()
    make(run).run()
    assert content(run) == content(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["method.merge.options.batch_norm=mixture"], "the merge exploded: its weights have the norm"),
        ([], "the merge failed: .* makes this variance negative"),
    ],
)
def test_an_exploding_merge_is_stopped_before_it_is_kept(more, message, make, cache, tmp_path):
    options = ["method.merge.name=task_arithmetic", "method.merge.options.scaling_factor=5000", *more]
    with pytest.raises(TrainingStopped, match=message) as stopped:
        make(tmp_path / "run", *options).run()
    assert "--set method.merge.name=duet" in str(stopped.value)
    assert open_artefact(tmp_path / "run").detector.classes == ("0", "1", "2")


def test_weights_are_looked_at():
    good, base = {"w": torch.ones(4), "n": torch.tensor(3)}, {"w": torch.full((4,), 0.1), "n": torch.tensor(0)}
    refuse_exploded(good, (base, base), ["w"], "x=1")  # tenfold, and not more
    with pytest.raises(TrainingStopped, match=r"exploded: its weights have the norm 2\.002, .* at most 0\.2"):
        refuse_exploded({"w": torch.full((4,), 1.001)}, (base, base), ["w"], "x=1")
    for value in (float("nan"), float("inf")):
        with pytest.raises(TrainingStopped, match=r"the model holds values that are not finite \('w'\)") as stopped:
            refuse_not_finite({"n": torch.tensor(1), "w": torch.tensor([1.0, value])}, "the model", "x=1")
        assert stopped.value.option == "x=1"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 kB; needs the right to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and sys.platform == "linux" and os.geteuid() == 0
    if (
        not mounted
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", place], check=False).returncode
    ):
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="module")
def detector():
    return load_pretrained("fcos-tiny.yaml").with_classes(("a",), 0)


def test_a_full_disk_is_named_and_the_old_file_stays(small_disk, detector):
    write_text(small_disk / "a", "old")
    writes = {
        "text": lambda path: write_text(path, "x" * 1_000_000),
        "tensors": lambda path: store_detector(detector, path),
        "checkpoint": lambda path: write_atomic(path, detector.save_checkpoint),
    }
    for kind, write in writes.items():
        with pytest.raises(DiskError, match=r"disk/a: No space left on device \([\d,]+ bytes are free\); what stood"):
            write(small_disk / "a")
        assert (small_disk / "a").read_text() == "old", kind
        assert [path.name for path in small_disk.iterdir()] == ["a"], kind


@pytest.mark.slow
def test_a_run_on_a_full_or_read_only_disk_says_so(small_disk, make, cache):
    with pytest.raises(DiskError, match=r"No space left on device"):
        make(small_disk / "run").run()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for out in ("run", "new"):
        with pytest.raises((InputError, DiskError), match=r"disk/(run|new): .*Read-only file system"):
            make(small_disk / out).run()


@pytest.mark.parametrize(
    ("error", "free", "message"),
    [
        (SafetensorError("I/O error: No space left on device (os error 28)"), 10**9, "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), 0, "No space left"),
        (OSError(30, "Read-only file system"), 10**9, "Read-only file system; what stood there before stays"),
        (OSError(13, "Permission denied"), 10**9, "Permission denied"),
    ],
)
def test_what_writers_make_of_a_disks_refusal(error, free, message, tmp_path, monkeypatch):
    def refuse(temporary):
        temporary.write_text("part")
        raise error

    monkeypatch.setattr("duet.disk._bytes_left", lambda path: free)
    with pytest.raises(DiskError, match=rf"a\.txt: {message}"):
        write_atomic(tmp_path / "a.txt", refuse)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_not_the_disks(tmp_path):
    def refuse(temporary):
        raise RuntimeError("[enforce fail at inline_container.cc:1] something else")

    with pytest.raises(RuntimeError, match="something else"):
        write_atomic(tmp_path / "a.txt", refuse)


def test_what_is_read_back_otherwise_takes_no_place(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(DiskError, match="Input/output error"):
        write_atomic(tmp_path / "a.txt", lambda temporary: temporary.write_text("new"), lambda temporary: False)
    assert (tmp_path / "a.txt").read_text() == "old"


def test_leftovers_of_processes_that_are_gone_are_deleted(tmp_path):
    gone, mine = 2**22 - 1, os.getpid()
    for name in (f".a.{gone}.part", f".a.{mine}.part", ".tmpAb12Cd", ".a.part", "b.1.part"):
        write_text(tmp_path / name, "")
    (tmp_path / f".folder.{gone}.part").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([f".a.{mine}.part", ".a.part", "b.1.part"])


def test_the_command_line_prints_the_way_on(monkeypatch, capsys):
    from duet.cli import main

    def stop(*arguments, **options):
        raise TrainingStopped("stage 2/2 (night): epoch 1: box is not finite\nTo go on: this", "train.lr0=1")

    monkeypatch.setattr("duet.resolve.resolve_config", stop)
    monkeypatch.setattr(sys, "argv", ["duet", "train"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        "Error: stage 2/2 (night): epoch 1: box is not finite",
        "To go on: this",
    ]


def test_a_truncated_summary_is_named(tmp_path):
    write_text(tmp_path / "results.json", json.dumps({"schema": 1})[:-1])
    result = CliRunner().invoke(app, ["summary", str(tmp_path)])
    assert isinstance(result.exception, InputError) and "results.json, line 1: not JSON" in str(result.exception)
