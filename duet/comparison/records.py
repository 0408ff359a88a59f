"""What the grid's folder remembers of each cell, and where its files are.

::

    OUT/runs/SERIES/DETECTOR/LABEL/seed-N/   run folders, as `duet train` makes them
    OUT/cells/….json                         how each cell ended
    OUT/logs/….log                           what it printed
    OUT/progress/….json                      how far it is
    OUT/trainings/                           later stages that several cells train alike
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from duet.comparison.grid import Cell
from duet.config import RunConfig
from duet.documents import read_json
from duet.errors import InputError
from duet.resolve import what_differs
from duet.state import digest_of, write_json

TRAININGS = "trainings"
TAIL_LINES = 15
TAIL_BYTES = 20_000

Status = Literal["pending", "finished", "failed"]


@dataclass(frozen=True)
class CellFiles:
    """Where the files of one cell are."""

    run: Path
    record: Path
    log: Path
    progress: Path


@dataclass(frozen=True)
class CellRecord:
    """How a cell stands.

    Args:
        status: ``pending`` also for one that was interrupted; it goes on where it stood.
        error: the sentence of a failed cell.
        log_tail: its last lines.
    """

    status: Status
    error: str = ""
    log_tail: tuple[str, ...] = ()


def cell_files(out: Path, name: str) -> CellFiles:
    """The files of a cell by its name."""
    flat = name.replace("/", "--")
    return CellFiles(
        out / "runs" / name,
        out / "cells" / f"{flat}.json",
        out / "logs" / f"{flat}.log",
        out / "progress" / f"{flat}.json",
    )


def fingerprint(config: RunConfig) -> str:
    """Digest of what decides a cell's numbers."""
    return digest_of(config.deciding())


def read_record(out: Path, cell: Cell) -> CellRecord:
    """How a cell stands.

    Raises:
        InputError: when it was finished with another configuration.
    """
    files = cell_files(out, cell.name)
    if not files.record.exists():
        return CellRecord("pending")
    try:
        record = read_json(files.record)
        status, same = record["status"], record["fingerprint"] == fingerprint(cell.config)
        ended = CellRecord(status, record["error"], tuple(record["log_tail"]))
    except (InputError, KeyError, TypeError):
        return CellRecord("pending")  # a damaged record: the run folder itself knows what is done
    if status == "failed" and not same:
        return CellRecord("pending")
    if status == "finished" and not same:
        raise InputError(
            f"{files.run}: was run with another configuration than the grid says now "
            f"({what_differs(files.run / 'config.yaml', cell.config)}); choose another --out, or delete it and "
            f"{files.record}"
        )
    return _finished(files.run, cell.config, ended) if status == "finished" else ended


def _finished(run: Path, config: RunConfig, ended: CellRecord) -> CellRecord:
    """The record of a finished cell by what its run folder holds now; what can be made again is pending."""
    from duet.uncertainty import lacks_intervals

    if not (run / "results.json").is_file():
        return CellRecord("pending")
    try:
        results = read_json(run / "results.json")
    except InputError as error:
        return CellRecord("failed", f"{error}; --retry-failed writes it again from the stages")
    detections = any(run.glob("stages/*/detections.safetensors"))
    return CellRecord("pending") if detections and lacks_intervals(results, run, config.evaluation.bootstrap) else ended


def write_record(record: Path, config: RunConfig, status: Status, error: str = "", log: Path | None = None) -> None:
    """Remember how a cell ended."""
    tail = list(log_tail(log)) if log is not None else []
    write_json(record, {"status": status, "fingerprint": fingerprint(config), "error": error, "log_tail": tail})


def log_tail(log: Path) -> tuple[str, ...]:
    """The last lines of a log; empty when there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - TAIL_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(line.rstrip() for line in text.splitlines() if line.strip())[-TAIL_LINES:]


def write_progress(path: Path, values: Mapping[str, Any]) -> None:
    """Replace a progress file; it need not survive a power cut, so it is not synced."""
    temporary = path.with_name(f".{path.name}.part")
    with suppress(OSError):
        temporary.write_text(json.dumps(dict(values)), encoding="utf-8")
        os.replace(temporary, path)


def read_progress(path: Path) -> dict[str, Any]:
    """The last progress of a cell; empty when there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
