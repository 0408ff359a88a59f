"""`duet compare` with real runs: killed and started again, crashing cells, two workers, both engines."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tiny_series import timeless

from duet.cli import main
from duet.comparison.engines import LocalEngine, RayEngine
from duet.comparison.grid import cells_of, read_grid
from duet.comparison.records import cell_files, read_progress
from duet.comparison.schedule import Display, run_cells

slow = pytest.mark.slow
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.fixture
def duet(monkeypatch, capsys):
    """Run the command; exit code, output, errors."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["duet", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call


def start(grid, out, *arguments):
    program = "from duet.cli import main; main()"
    command = [sys.executable, "-c", program, "compare", str(grid), "--out", str(out), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers(starter):
    """Process numbers of the workers that a process started; others may run on this machine too."""
    try:
        children = psutil.Process(starter.pid).children(recursive=True)
        return [child.pid for child in children if "duet.comparison.worker" in child.cmdline()]
    except psutil.Error:  # one of them has just ended
        return []


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def read_results(run):
    return timeless(json.loads((run / "results.json").read_text()))


def test_a_dry_run_lists_the_cells_and_writes_nothing(duet, write_grid, tmp_path):
    code, out, _ = duet("compare", write_grid(methods=["joint", "duet"]), "--out", tmp_path / "out", "--dry-run")
    assert code == 0 and "tiny/yolo11n/duet/seed-0" in out and "pending" in out
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there_is_said_once_before_anything_starts(duet, tmp_path):
    arguments = ("compare", "photographs", "--out", tmp_path / "out")
    code, _, error = duet(*arguments, "--dry-run")
    assert code == 2 and "series 'photographs-two' reads pictures of yours: --root names their folder" in error
    code, _, error = duet(*arguments, "--root", tmp_path / "nowhere")
    assert code == 2 and "no such file (domain 'photographs')" in " ".join(error.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--method", "dute"], "--method dute: the grid has joint, duet"),
        (["--set", "method.towers=old"], "--set method"),
        (["--set", "train.epoch=3"], "unknown key 'train.epoch'; did you mean 'epochs'"),
        (["--devices", "gpu"], "--devices gpu: expected numbers"),
        (["--devices", "0,0"], "--devices 0,0: expected numbers"),
        (["--engine", "slurm"], "--engine is 'slurm': expected local or ray"),
        (["--seed", "-1"], "key 'seeds.0' is -1"),
        (["--merger", "tiez"], "tiez"),
    ],
)
def test_a_wrong_option_is_one_sentence(duet, write_grid, tmp_path, arguments, said):
    grid = write_grid(methods=["joint", "duet"])
    code, _, errors = duet("compare", grid, "--out", tmp_path / "out", *arguments)
    assert code == 2 and said in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(duet, write_grid, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, errors = duet("compare", write_grid(methods=["duet"]), "--out", tmp_path / "file" / "out")
    assert code == 2 and "cannot be made a folder" in errors


@slow
def test_one_cell_fails_with_its_last_lines_and_the_others_end_in_table_and_page(duet, write_grid, tmp_path):
    grid = write_grid(methods=["joint", "sequential"], detectors=["fcos-tiny", "absent.pt"])
    out = tmp_path / "out"
    code, printed, _ = duet("compare", grid, "--out", out)
    assert code == 1
    for file in ("table.csv", "table.md", "table.tex", "compare.json", "compare.html"):
        assert (out / file).stat().st_size > 0
    page = (out / "compare.html").read_text()
    assert "absent.pt" in page and "absent.pt" in printed
    blocks = {block["detector"]: block for block in json.loads((out / "compare.json").read_text())["blocks"]}
    rows = {row["label"]: row for row in blocks["fcos-tiny"]["rows"]}
    assert rows["sequential"]["seeds"] == [0] and rows["joint"]["seeds"] == [0]
    results = read_results(out / "runs/tiny/fcos-tiny/sequential/seed-0")
    assert rows["sequential"]["indices"]["map50"]["overall"]["mean"] == results["indices"]["map50"]["overall"]
    failed = [row for block in (blocks.get("absent"),) for row in block["rows"]]
    assert all("absent.pt" in row["failed"][0]["error"] and row["failed"][0]["log_tail"] for row in failed)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}
    code, printed, _ = duet("compare", grid, "--out", out)
    assert code == 1 and "2 finished before, 0 to do, 2 failed before" in printed
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("results.json")}


@slow
def test_killed_at_any_time_it_loses_and_repeats_nothing(write_grid, tmp_path):
    grid = write_grid(methods=["joint", "sequential", "frozen"], detectors=["fcos-tiny"])
    out, generator = tmp_path / "out", random.Random(3)
    undisturbed = tmp_path / "undisturbed"
    assert start(grid, undisturbed, "--workers", "2").wait() == 0
    kept = {}
    for _ in range(4):
        process = start(grid, out, "--workers", "2")
        wait_until(lambda running=process: running.poll() is not None or workers(running))
        time.sleep(generator.uniform(0.0, 14.0))
        started = workers(process) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.communicate()
        wait_until(lambda left=started: not any(map(psutil.pid_exists, left)), 30)  # no worker outlives its starter
        for path, when in kept.items():
            assert path.stat().st_mtime_ns == when, f"{path} was repeated"
        finished = list((out / "cells").glob("*.json")) if (out / "cells").is_dir() else []
        assert all(json.loads(path.read_text())["status"] == "finished" for path in finished)
        kept = {path: path.stat().st_mtime_ns for path in finished}
    last = start(grid, out, "--workers", "2")
    printed = last.communicate()[0]
    assert last.returncode == 0, printed
    assert f"{len(kept)} finished before" in printed
    for run in (undisturbed / "runs").rglob("results.json"):
        again = out / "runs" / run.parent.relative_to(undisturbed / "runs")
        assert read_results(again) == read_results(run.parent)


@slow
def test_a_worker_that_is_killed_fails_its_cell_alone(write_grid, tmp_path):
    grid = write_grid(methods=["sequential", "frozen"], detectors=["fcos-tiny"], evaluation={"reference": "none"})
    out = tmp_path / "out"
    cell = cells_of(read_grid(str(grid)))[0]
    process = start(grid, out, "--workers", "1")
    wait_until(lambda: read_progress(cell_files(out, cell.name).progress).get("title"))
    os.kill(workers(process)[0], signal.SIGKILL)
    printed = process.communicate()[0]
    assert process.returncode == 1 and f"{cell.name}: the process was ended by signal 9" in printed
    statuses = {path.name: json.loads(path.read_text())["status"] for path in (out / "cells").glob("*.json")}
    assert sorted(statuses.values()) == ["failed", "finished"]
    again = start(grid, out, "--workers", "1", "--retry-failed")
    assert "2 runs: 1 finished before, 1 to do" in again.communicate()[0] and again.returncode == 0


@slow
@pytest.mark.alone
@pytest.mark.skipif(CORES < 2, reason="needs two cores")
def test_two_workers_are_one_and_a_half_times_as_fast_as_one(write_grid, tmp_path):
    pytest.importorskip("ray")
    train = {"epochs": 1, "threads": 1}
    grid = write_grid(
        methods=["sequential"],
        seeds=[0, 1, 2, 3],
        detectors=["fcos-tiny"],
        train=train,
        evaluation={"reference": "none"},
    )
    cells = cells_of(read_grid(str(grid)))

    def seconds(name, engine, number):
        os.environ["DUET_CACHE"] = str(tmp_path / "cache" / f"{name}{number}")  # nothing is shared between the rounds
        begun = time.monotonic()
        records = run_cells(cells, tmp_path / f"{name}{number}", engine, Display())
        assert {record.status for record in records.values()} == {"finished"}
        return time.monotonic() - begun

    kept = os.environ["DUET_CACHE"]
    try:
        ratios = {"two": 0.0, "ray": 0.0}
        for number in range(3):  # another process may be in the way of one round
            one = seconds("one", LocalEngine(1), number)
            if ratios["two"] < 1.5:
                ratios["two"] = one / seconds("two", LocalEngine(2), number)
            if ratios["ray"] < 1.5:
                ratios["ray"] = one / seconds("ray", RayEngine(2, cpus=1, gpus=0), number)
            if min(ratios.values()) >= 1.5:
                break
    finally:
        os.environ["DUET_CACHE"] = kept
    assert min(ratios.values()) >= 1.5, ratios
    texts = [(tmp_path / f"{name}0" / "runs" / cells[0].name) for name in ("one", "two", "ray")]
    assert len({json.dumps(read_results(path)) for path in texts}) == 1
