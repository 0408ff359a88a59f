"""``duet update``: one more task onto a deployed detector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from duet.errors import InputError, nearest
from duet.options import TrustOption
from duet.report.tables import titled_table

INDICES = ("kept", "new", "overall")


def update(
    detector: Annotated[
        Path, typer.Argument(help="Run folder, detector.safetensors, detector.pt, or any plain YOLO or RT-DETR file.")
    ],
    data: Annotated[Path, typer.Option(help="Folder or file of the new data: YOLO, VOC or COCO.")],
    classes: Annotated[list[str], typer.Option(help="New classes; several may follow.")],
    domain: Annotated[str, typer.Option(help="What the new domain is called.")],
    out: Annotated[Path, typer.Option(help="Folder of the result; must not exist.")],
    val: Annotated[
        list[str] | None, typer.Option(metavar="NAME=FOLDER", help="Score before and after on this data; repeatable.")
    ] = None,
    fail_below: Annotated[
        list[str] | None,
        typer.Option(metavar="INDEX=VALUE", help="End with exit code 1 below it: kept, new or overall; repeatable."),
    ] = None,
    unlabelled: Annotated[str, typer.Option(help="drop or keep pictures without a box of the new classes.")] = "drop",
    method: Annotated[str | None, typer.Option(help="Method; by default the detector's own, or duet.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key of train, method or evaluation."),
    ] = None,
    trust: TrustOption = False,
) -> None:
    """Teach a deployed detector new classes in a new domain; no earlier picture is needed."""
    from duet.datasets.dataset_folder import open_folder
    from duet.monitor import ConsoleMonitor
    from duet.update import Update, update_detector

    limits = _limits(fail_below or [], bool(val))
    if unlabelled not in ("drop", "keep"):
        raise InputError(f"--unlabelled is '{unlabelled}': expected drop or keep")
    validation = _named(val or [])
    has_record, settings = _settings(detector, method, set_ or [], trust)
    request = Update(
        detector=detector,
        data=open_folder(data),
        domain=domain,
        classes=tuple(classes),
        out=out,
        validation={name: open_folder(folder) for name, folder in validation.items()},
        unlabelled_images=unlabelled,
        trust=trust,
        needed=tuple(limits),
        **settings,
    )
    console = Console()
    if not has_record:
        console.print(_without_record(request), soft_wrap=True, highlight=False)
    with ConsoleMonitor() as monitor:
        document = update_detector(request, monitor)
    console.print(_from(document))
    if document["scores"]:
        console.print(scores_table(document))
    good, sentence = verdict(document["indices"], limits)
    console.print(sentence, highlight=False)
    console.print(f"Detector: {out / 'detector.pt'}   Card: {out / 'MODEL_CARD.md'}", soft_wrap=True)
    if not good:
        raise typer.Exit(1)


def scores_table(document: Mapping[str, Any]) -> Table:
    """Before and after on every validation set.

    Args:
        document: the content of update.json.
    """
    table = titled_table("Before and after (mAP50)")
    for name, justify in (("Validation", "left"), ("Classes", "left"), ("", "left")):
        table.add_column(name, justify=justify, overflow="fold")
    for name in ("Boxes", "Before", "After", "Ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in document["scores"]:
        ratio = row["after"] / row["before"] if row["before"] else None
        numbers = ["–" if value is None else f"{value:.3f}" for value in (row["before"], row["after"], ratio)]
        names = escape(", ".join(row["classes"]))
        table.add_row(escape(row["validation"]), names, row["kind"], str(row["boxes"]), *numbers)
    return table


def verdict(indices: Mapping[str, float | None], limits: Mapping[str, float]) -> tuple[bool, str]:
    """Whether every limit is met, and a sentence that says so.

    Args:
        indices: kept, new and overall.
        limits: the smallest value that is good enough, by index.
    """
    shown = ", ".join(f"{name} {_number(indices[name])}" for name in INDICES)
    if all(value is None for value in indices.values()):
        return True, "Verdict: none, no validation set was given (--val NAME=FOLDER)."
    failed = [name for name, least in limits.items() if indices[name] is None or indices[name] < least]
    if failed:
        reasons = ", ".join(_reason(name, indices[name], limits[name]) for name in failed)
        return False, f"Verdict: not good enough, {reasons} ({shown})."
    met = ", ".join(f"{name} ≥ {least:g}" for name, least in limits.items())
    return True, f"Verdict: {shown}{f'; good enough ({met})' if met else ''}."


def _reason(name: str, value: float | None, least: float) -> str:
    if value is None:
        return f"{name} cannot be computed, nothing was found before"
    return f"{name} {_number(value)} is below {least:g}"


def _limits(given: list[str], validated: bool) -> dict[str, float]:
    limits = {}
    for item in given:
        name, _, text = item.partition("=")
        if name not in INDICES:
            raise InputError(f"--fail-below {item}: unknown index '{name}'" + nearest(name, INDICES))
        try:
            limits[name] = float(text)
        except ValueError as error:
            raise InputError(f"--fail-below {item}: expected INDEX=NUMBER such as kept=0.95") from error
    if limits and not validated:
        raise InputError("--fail-below needs something to score on: --val NAME=FOLDER")
    return limits


def _named(given: list[str]) -> dict[str, Path]:
    sets: dict[str, Path] = {}
    for item in given:
        name, equals, folder = item.partition("=")
        if not equals or not name or not folder:
            raise InputError(f"--val {item}: expected NAME=FOLDER")
        if name in sets:
            raise InputError(f"--val {item}: '{name}' is named twice")
        sets[name] = Path(folder)
    return sets


def _settings(detector: Path, method: str | None, assignments: list[str], trust: bool) -> tuple[bool, dict[str, Any]]:
    """Whether the detector has a record; method, training and evaluation settings: its own, then what is given."""
    from duet.artefact import open_artefact
    from duet.config import EvaluationSettings, MethodSettings, TrainSettings, overlay, parse_assignments, validate
    from duet.methods import method_settings
    from duet.update import default_train

    artefact = open_artefact(detector, trust)
    record = artefact.record
    given = parse_assignments(assignments)
    unknown = [key for key in given if key not in ("train", "method", "evaluation")]
    if unknown:
        raise InputError(f"--set {unknown[0]}: expected a key of train, method or evaluation")
    own = record.method if record else method_settings("duet")
    bases = {
        "train": (TrainSettings, record.train if record else default_train(artefact.detector)),
        "method": (MethodSettings, method_settings(method) if method else own),
        "evaluation": (EvaluationSettings, EvaluationSettings()),
    }
    return record is not None, {
        key: validate(kind, overlay(base.model_dump(), given.get(key, {})), f"--set, {key}")
        for key, (kind, base) in bases.items()
    }


def _without_record(request: Any) -> str:
    train = request.train
    return (
        f"{request.detector} keeps no record of tasks: it learns by method {request.method.name}, "
        f"{train.epochs} epochs at {train.image_size} pixels (--set train.epochs=…, train.image_size=…)."
    )


def _from(document: Mapping[str, Any]) -> str:
    source = document["measured_from"]
    if source["is_the_checkpoint_itself"]:
        return f"Updates are measured from {source['name']} itself: no pretrained weights of its size could be had."
    return f"Updates are measured from the pretrained weights {source['name']}."


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
