"""``duet inspect``: what a deployed detector says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from duet.options import TrustOption
from duet.report.tables import titled_table

if TYPE_CHECKING:
    from duet.artefact import Artefact


def inspect(
    path: Annotated[Path, typer.Argument(help="A run folder, detector.safetensors, detector.pt or any checkpoint.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    trust: TrustOption = False,
) -> None:
    """Print classes, tasks, settings and scores of a detector, and what it keeps for its next update."""
    from duet.artefact import open_artefact

    artefact = open_artefact(path, trust)
    detector = artefact.detector
    facts = {
        "family": detector.describe().family,
        "classes": list(detector.classes),
        "parameters": sum(detector.state()[key].numel() for key in detector.split().parameters),
        "image_size": detector.image_size,
    }
    record = artefact.record.model_dump(mode="json") if artefact.record else None
    if as_json:
        kept = {"kept_bytes": _kept(artefact)} if record else {}
        typer.echo(json.dumps({**facts, **kept, "record": record}, indent=1, ensure_ascii=False))
        return
    console = Console()
    console.print(_facts(path, facts))
    if record is None:
        console.print("A plain checkpoint: it keeps no record of tasks. `duet update` can still teach it more.")
        return
    console.print(_tasks(record))
    console.print(_kept_table(_kept(artefact)))
    if record["scores"]:
        console.print(_scores(record))


def _facts(path: Path, facts: dict[str, Any]) -> Table:
    table = _table(str(path), ("", "left"), ("", "left"))
    table.show_header = False
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(name.replace("_", " "), escape(shown))
    return table


def _tasks(record: dict[str, Any]) -> Table:
    title = f"Learned with {record['method']['name']} from {record['start']['name']}, seed {record['seed']}"
    colours = (("Mean colour", "left"), ("Spread", "left"))
    columns = (("Task", "right"), ("Domain", "left"), ("Classes", "left"), ("Images", "right"), *colours)
    table = _table(title, *columns)
    for number, task in enumerate(record["tasks"], 1):
        images = "–" if task["images"] is None else f"{task['images']:,}"
        shown = ["–" if task[key] is None else " ".join(f"{part:.2f}" for part in task[key]) for key in ("mean", "std")]
        table.add_row(str(number), escape(task["domain"]), escape(", ".join(task["classes"])), images, *shown)
    return table


def _kept(artefact: Artefact) -> dict[str, int]:
    """Bytes of what the next update needs: two models however many tasks, and a little text per task."""
    models = {
        "weights": artefact.detector.state(),
        "shared weights before the last task": artefact.before,
        "checkpoint that updates are measured from": artefact.base,
    }
    sizes = {name: sum(value.nbytes for value in tensors.values()) for name, tensors in models.items() if tensors}
    for number, task in enumerate(artefact.record.tasks, 1):
        sizes[f"task {number}"] = len(task.model_dump_json().encode())
    return sizes


def _kept_table(sizes: dict[str, int]) -> Table:
    table = _table("Kept for the next update, and no picture", ("What", "left"), ("kB", "right"))
    for name, size in sizes.items():
        table.add_row(name, f"{size / 1e3:,.2f}")
    return table


def _scores(record: dict[str, Any]) -> Table:
    columns = (("Test pictures", "left"), ("Classes", "left"), ("mAP50", "right"), ("mAP50-95", "right"))
    table = _table("Scores", *columns)
    for score in record["scores"]:
        values = ["–" if score[key] is None else f"{score[key]:.3f}" for key in ("map50", "map50_95")]
        table.add_row(escape(score["domain"]), escape(", ".join(score["classes"])), *values)
    return table


def _table(title: str, *columns: tuple[str, str]) -> Table:
    table = titled_table(title)
    for name, justify in columns:
        table.add_column(name, justify=justify, overflow="fold")
    return table
