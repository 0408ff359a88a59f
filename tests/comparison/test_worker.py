"""A worker ends with its starter, says how its cell ended, and how far it is."""

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from duet.comparison.records import cell_files, read_progress, read_record
from duet.comparison.worker import STOPPED, FileMonitor, Job, job_values, launch, run_job
from duet.detectors.base import StageProgress
from duet.errors import InputError


@pytest.fixture
def job(make_cells, tmp_path):
    cell = make_cells(methods=["duet"])[0]
    files = cell_files(tmp_path, cell.name)
    paths = map(str, (files.run, files.record, files.log, files.progress))
    return cell, Job(cell.name, cell.config.model_dump(mode="json"), *paths, {})


def raising(monkeypatch, error):
    given = []

    class Learner:
        def __init__(self, *arguments, trainings):
            given.append(trainings)

        def run(self):
            if error is not None:
                raise error

    monkeypatch.setattr("duet.learner.Learner", Learner)
    return given


def test_it_ends_when_its_starter_has_gone(job):
    program = "import time, duet.comparison.worker as w; w.run_job = lambda job: time.sleep(600); w.main()"
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    try:
        process.stdin.write(json.dumps(job_values(job[1])).encode() + b"\n")
        process.stdin.flush()
        time.sleep(3)
        assert process.poll() is None  # at work while the pipe is open
        process.stdin.close()
        assert process.wait(30) == STOPPED
    finally:
        process.kill()


@pytest.mark.parametrize(
    "error, sentence",
    [
        (InputError("a.yaml: wrong"), "a.yaml: wrong"),
        (RuntimeError("\n  first\nsecond"), "first"),
        (OSError(), "OSError"),
    ],
)
def test_a_failure_is_recorded_with_its_first_line(job, monkeypatch, tmp_path, error, sentence):
    cell, work = job
    raising(monkeypatch, error)
    work.files.log.parent.mkdir(parents=True)
    work.files.log.write_text("before\n")
    assert run_job(work) == 1
    found = read_record(tmp_path, cell)
    assert (found.status, found.error, found.log_tail) == ("failed", sentence, ("before",))


def test_a_finished_job_is_recorded(job, monkeypatch, tmp_path):
    cell, work = job
    raising(monkeypatch, None)
    work.files.run.mkdir(parents=True)
    (work.files.run / "results.json").write_text("{}")
    assert run_job(work) == 0
    assert read_record(tmp_path, cell).status == "finished"


def test_its_output_and_the_slots_environment_reach_it(job, monkeypatch, tmp_path):
    program = tmp_path / "program"
    program.write_text('#!/bin/sh\necho "card $DUET_TEST_CARD"\nexit 3\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert launch(job_values(job[1]) | {"environment": {"DUET_TEST_CARD": "7"}}) == 3
    assert job[1].files.log.read_text() == "card 7\n"


def test_progress_counts_the_steps_of_all_stages(tmp_path):
    path = tmp_path / "progress.json"
    monitor = FileMonitor(path)
    monitor.plan(8)
    for stage in (1, 2):
        monitor.begin(f"stage {stage}", 4)
        for step in (1, 2, 3):
            monitor.train_step(StageProgress(step, 4, 1, 1, {}))
    for step in (1, 2):  # the last stage's calibration
        monitor.train_step(StageProgress(step, 2, 1, 1, {}))
    monitor.begin("evaluate", 5)
    found = read_progress(path)
    assert (found["steps"], found["planned"], found["title"], found["done"], found["total"]) == (8, 8, "evaluate", 0, 5)


@pytest.mark.parametrize("folder", [None, "shared/trainings"])
def test_the_folder_of_shared_trainings_reaches_the_run(job, monkeypatch, folder):
    given = raising(monkeypatch, None)
    run_job(replace(job[1], trainings=folder))
    assert given == [None if folder is None else Path(folder)]
