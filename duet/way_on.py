"""What a user can do when a training has gone wrong by its numbers."""

from __future__ import annotations

import shlex
from pathlib import Path

from duet.errors import TrainingStopped
from duet.series import Series


def way_on(out: Path, series: Series, task: int, error: TrainingStopped) -> str:
    """What went wrong in a run, what is kept, and the commands that go on.

    Args:
        out: the run folder.
        series: its tasks.
        task: number of the task whose stage stopped.
        error: why.
    """
    item = series.tasks[task - 1]
    lines = [f"stage {task}/{len(series)} ({item.domain}): {error}; this stage was not kept"]
    if task > 1:
        classes, domain = " ".join(shlex.quote(name) for name in item.classes), shlex.quote(item.domain)
        lines += [
            f"Kept: {out / 'detector.pt'}, the detector after stage {task - 1}, and the stages before.",
            "To go on from it with other settings: "
            f"duet update {shlex.quote(str(out))} --data FOLDER --classes {classes} --domain {domain} --out NEW "
            f"--set {error.option}",
        ]
    lines.append(f"To start anew: the same command with another --out and --set {error.option}")
    return "\n".join(lines)


def way_on_after_update(detector: Path, error: TrainingStopped) -> str:
    """The same for an update.

    Args:
        detector: what was to be updated.
        error: why it stopped.
    """
    return (
        f"the update stopped: {error}; nothing was written, {detector} is as it was\n"
        f"To go on: the same command with --set {error.option}"
    )
