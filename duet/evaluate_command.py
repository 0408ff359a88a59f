"""``duet evaluate``: any detector on the class × domain grid of a series."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from duet.errors import InputError
from duet.options import TrustOption


def evaluate(
    detector: Annotated[str, typer.Argument(help="A .pt or .safetensors file, or the name of weights.")],
    series: Annotated[str, typer.Option(help="Name of a shipped series, or a series YAML.")] = "demo",
    root: Annotated[Path | None, typer.Option(help="Folder that the series' relative paths start from.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the input in pixels; that of training by default.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all numbers to this file.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Evaluation settings, e.g. evaluation.iou=0.6."),
    ] = None,
    trust: TrustOption = False,
) -> None:
    """Score a detector on the test pictures of every domain of a series; nothing is trained."""
    from duet.config import EvaluationSettings, overlay, parse_assignments, validate
    from duet.datasets.series_file import find_series
    from duet.detectors.families import load_pretrained
    from duet.monitor import ConsoleMonitor
    from duet.report.tables import grid_table
    from duet.state import write_json

    given = parse_assignments(set_ or [])
    unknown = [key for key in given if key != "evaluation"]
    if unknown:
        raise InputError(f"--set {unknown[0]}: only keys of evaluation count here")
    asked = overlay(find_series(series, root).section.evaluation, given.get("evaluation", {}))
    settings = validate(EvaluationSettings, asked, "--set, evaluation")
    with ConsoleMonitor() as monitor:
        document = score_grid(load_pretrained(detector, trust), series, root, image_size, settings, monitor)
    document["detector"] = detector
    Console().print(grid_table(document))
    if json_file is not None:
        write_json(json_file, document)
        Console().print(f"Numbers: {json_file}")


def score_grid(
    detector: Any, series: str, root: Path | None, image_size: int | None, settings: Any, monitor: Any
) -> dict[str, Any]:
    """The grid as a document with ``series``, ``settings``, ``versions`` and one of ``stages``, as in results.json.

    Args:
        detector: the detector.
        series: name or path of the series.
        root: folder of the series' relative paths.
        image_size: side of the input; None takes that of the detector's training, or the series'.
        settings: evaluation settings.
        monitor: progress.

    Raises:
        InputError: when the series cannot be read or the detector knows none of its classes.
    """
    from duet.config import TrainSettings, validate
    from duet.datasets.domain import open_domains
    from duet.datasets.series_file import find_series
    from duet.evaluation.run import score_domain
    from duet.results import series_entry, stage_entry, versions

    source = find_series(series, root)
    plan = source.series
    known = [number for number, task in enumerate(plan.tasks, 1) if set(task.classes) <= set(detector.classes)]
    if not known:
        raise InputError(
            f"the detector knows no task of series '{plan.name}' whole; its classes: {', '.join(detector.classes[:20])}"
        )
    trained = validate(TrainSettings, source.section.train, f"series '{plan.name}', train").image_size
    size = image_size or detector.image_size or trained
    domains = open_domains(source, lambda what, done, total: None)
    scores = {}
    for name in plan.test_domains:
        images = domains[name].test()
        monitor.begin(f"evaluate: {name}", len(images))
        scores[name] = score_domain(
            detector, name, images, plan.classes, size, settings, lambda done, total: monitor.advance(done)
        )
    slices = plan.slices(known[-1])
    stage = stage_entry(known[-1], plan, slices, scores, None, [], {})
    return {
        "series": series_entry(plan, size),
        "settings": {"evaluation": settings.model_dump(mode="json", exclude={"reference", "bootstrap"})},
        "versions": versions(),
        "stages": [stage],
    }
