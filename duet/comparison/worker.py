"""One cell in a process of its own: a crash takes nobody with it, and it ends when whoever started it ends.

``python -m duet.comparison.worker`` reads one line of JSON from its standard input, a :class:`Job`, and runs it. When
the input closes, the starter has gone, and the process stops at once; the run goes on where it stood when the cell is
started again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from duet.comparison.records import CellFiles, write_progress, write_record
from duet.config import RunConfig
from duet.detectors.base import StageProgress
from duet.errors import InputError, first_line
from duet.monitor import ConsoleMonitor

SECONDS_BETWEEN = 0.5
STOPPED = 130


@dataclass(frozen=True)
class Job:
    """What a worker needs: plain values only, so that it can travel to another machine.

    Args:
        name: of the cell.
        config: the resolved configuration.
        run, record, log, progress: its files; on a cluster, on a disk that all machines share.
        environment: variables of its process, such as the graphics cards that it may see.
        trainings: folder of the later stages' trainings that cells share; None keeps none.
    """

    name: str
    config: Mapping[str, Any]
    run: str
    record: str
    log: str
    progress: str
    environment: Mapping[str, str]
    trainings: str | None = None

    @property
    def files(self) -> CellFiles:
        """The paths as such."""
        return CellFiles(Path(self.run), Path(self.record), Path(self.log), Path(self.progress))


class FileMonitor(ConsoleMonitor):
    """Prints to the log and writes the progress file, at most twice a second."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._written = path, 0.0
        self._values: dict[str, Any] = {"title": "", "done": 0, "total": 0, "steps": 0, "planned": 0}

    def plan(self, steps: int) -> None:
        """Remember the run's steps."""
        super().plan(steps)
        self._values["planned"] = steps

    def begin(self, title: str, total: int) -> None:
        """A part begins."""
        super().begin(title, total)
        self._values.update(title=title, done=0, total=total)
        self._write(at_once=True)

    def advance(self, done: int, text: str = "") -> None:
        """Move the part."""
        super().advance(done, text)
        self._values.update(done=done, steps=self.steps_done)
        self._write()

    def train_step(self, progress: StageProgress) -> None:
        """Move the run and the part."""
        self._values["total"] = progress.steps
        super().train_step(progress)

    def _write(self, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self._written >= SECONDS_BETWEEN:
            self._written = time.monotonic()
            write_progress(self._path, self._values)


def launch(job: Mapping[str, Any], started: Callable[[subprocess.Popen], None] | None = None) -> int:
    """Run a job in a new process and wait for it.

    Args:
        job: the fields of a :class:`Job`.
        started: called with the process, so that it can be stopped.

    Returns:
        The exit code; negative when a signal ended it.
    """
    log = Path(job["log"])
    log.parent.mkdir(parents=True, exist_ok=True)
    Path(job["progress"]).parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "duet.comparison.worker"],
            stdin=subprocess.PIPE,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, **job["environment"]},
            start_new_session=True,  # Ctrl-C reaches the starter alone, which ends its workers
        )
    if started is not None:
        started(process)
    try:
        process.stdin.write(json.dumps(dict(job)).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it died at once; its exit code says so
    return process.wait()


def run_job(job: Job) -> int:
    """Run a job in this process; how it ended is written to its record."""
    from duet.learner import Learner

    config, files = RunConfig.model_validate(job.config), job.files
    try:
        with FileMonitor(files.progress) as monitor:
            trainings = None if job.trainings is None else Path(job.trainings)
            Learner(config, files.run, monitor, trainings=trainings).run()
    except Exception as error:
        if not isinstance(error, InputError):
            traceback.print_exc()
        sentence = first_line(error)
        print(f"Error: {sentence}", flush=True)
        write_record(files.record, config, "failed", sentence, files.log)
        return 1
    write_record(files.record, config, "finished")
    return 0


def job_values(job: Job) -> dict[str, Any]:
    """The fields of a job as plain values."""
    return asdict(job)


def _end_with_the_starter() -> None:
    sys.stdin.buffer.read()  # returns when the pipe closes
    os._exit(STOPPED)


def main() -> int:
    """Read a job and run it."""
    from duet.cli import quiet_libraries

    quiet_libraries()
    job = Job(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_the_starter, daemon=True).start()
    return run_job(job)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the watching thread holds the standard input
