"""What a whole later stage of a method takes: training, merge and head calibration, against plain fine-tuning."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from duet.datasets.domain import open_domains
from duet.datasets.series_file import find_series
from duet.datasets.training import colour_statistics, write_training_set
from duet.detectors.base import Detector
from duet.detectors.families import load_pretrained
from duet.resolve import resolve_config
from duet.stage import StageInput, later_stage
from duet.stage_data import own_labels

PLAIN = "sequential"


def stage(
    methods: Annotated[list[str], typer.Argument(help="Methods to compare with plain fine-tuning.")] = ("duet",),
    series: Annotated[str, typer.Option(help="Name or YAML; its second stage is measured.")] = "demo",
    detector: Annotated[str, typer.Option(help="yolo11n, rtdetr-tiny, …")] = "yolo11n",
    epochs: Annotated[int, typer.Option(help="Epochs of the stage.", min=1)] = 8,
    rounds: Annotated[int, typer.Option(help="How often every method is run, in turn.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 takes all cores.", min=0)] = 0,
) -> None:
    """A second stage by each method, as ratios to plain fine-tuning (`sequential`)."""
    names = (PLAIN, *methods)
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        order = [name for _ in range(rounds) for name in names]
        for name in track(order, description="benchmark"):
            seconds[name].append(_seconds(name, series, detector, epochs, threads, Path(folder)))
    _show(seconds)


def _seconds(method: str, series: str, name: str, epochs: int, threads: int, folder: Path) -> dict[str, float]:
    options = {"series": series, "detector": name, "method": method}
    config = resolve_config(None, options, {"train": {"epochs": epochs, "threads": threads}})
    source = find_series(series)
    first, second = source.series.tasks[:2]
    domains = open_domains(source)
    images = domains[second.domain].train()
    start = load_pretrained(name)
    previous = _moved(start.with_classes(first.classes, 0))
    classes = source.series.classes_until(2)
    base, shared = start.state(), start.split(config.method.towers == "shared").shared
    data = write_training_set(images, second.classes, classes, folder / "data", "drop")
    item = StageInput(
        task=2,
        classes=second.classes,
        data=data,
        images=own_labels(images, second.classes, source.section.unlabelled_images),
        folder=folder / "train",
        statistics=colour_statistics(images),
        past=(colour_statistics(domains[first.domain].train()),),
        base={key: base[key] for key in shared},
        previous=previous,
        before_previous=base,
    )
    return later_stage(item, config, None).seconds


def _moved(detector: Detector) -> Detector:
    """As after a first stage: away from the pretrained weights, so that the last update has a direction."""
    generator = torch.Generator().manual_seed(0)
    state = detector.state()
    for key in detector.split(shared_towers=True).shared_parameters:
        state[key] = state[key] + 1e-3 * torch.randn(state[key].shape, generator=generator)
    detector.load_state(state)
    return detector


def _show(seconds: dict[str, list[dict[str, float]]]) -> None:
    table = Table("method", "whole stage / plain: median", "min", "max", "of it training", "calibration", "looking")
    plain = [sum(parts.values()) for parts in seconds[PLAIN]]
    for name, rounds in seconds.items():
        ratios = [sum(parts.values()) / whole for parts, whole in zip(rounds, plain)]
        shares = [
            statistics.median(parts.get(part, 0.0) / sum(parts.values()) for parts in rounds)
            for part in ("train", "calibrate", "statistics")
        ]
        values = [f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))]
        table.add_row(name, *values, *(f"{share:.0%}" for share in shares))
    Console().print(table)
