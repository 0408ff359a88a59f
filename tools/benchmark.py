"""Measure speed as ratios within one run: ``benchmark.py`` train, stage, infer, merge, data, fuse.

Absolute times depend on the machine and what else it does; the variants are run in turn, several times, and the
medians of their ratios are printed.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from benchmark_data import data
from benchmark_fuse import fuse
from benchmark_infer import infer
from benchmark_merge import merge
from benchmark_stage import stage
from rich.console import Console
from rich.progress import track
from rich.table import Table

from duet.config import DirectionalSettings, DistillationSettings, MethodSettings, TrainSettings
from duet.datasets.domain import open_domains
from duet.datasets.series_file import find_series
from duet.datasets.training import write_training_set
from duet.detectors.base import Detector, DirectionalTarget, StageRequest
from duet.detectors.families import load_pretrained

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@app.callback()
def _root() -> None:
    """Benchmarks of the library."""


app.command()(infer)
app.command()(merge)
app.command()(data)
app.command()(fuse)
app.command()(stage)


@app.command()
def train(
    rounds: Annotated[int, typer.Option(help="How often every variant is run.")] = 5,
    epochs: Annotated[int, typer.Option(help="Epochs per run.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 takes all cores.")] = 0,
) -> None:
    """A stage with the added losses against a plain Ultralytics training of the same model, batch and epochs."""
    variants = {
        "plain Ultralytics training": None,
        "stage without added losses": MethodSettings(name="none"),
        "stage with DC": MethodSettings(name="dc", directional_consistency=DirectionalSettings()),
        "stage with DC and distillation (paper)": _both("paper"),
        "stage with DC and distillation (weighted)": _both("weighted"),
    }
    settings = TrainSettings(epochs=epochs, image_size=160, fliplr=0.0, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        run = _prepare(Path(folder), settings)
        times: dict[str, list[float]] = {name: [] for name in variants}
        order = [name for _ in range(rounds) for name in variants]
        for name in track(order, description="benchmark"):
            times[name].append(run(variants[name]))
    _show(times)


def _both(kind: str) -> MethodSettings:
    return MethodSettings(
        name="both",
        distillation=DistillationSettings(kind=kind),
        directional_consistency=DirectionalSettings(),
    )


def _prepare(folder: Path, settings: TrainSettings) -> Callable[[MethodSettings | None], float]:
    """A function that trains one variant and returns the seconds per step."""
    source = find_series("demo")
    images = open_domains(source)["night"].train()
    teacher = load_pretrained("yolo11n").with_classes(("0", "1", "2"), 0)
    grown = teacher.grown(("3", "4", "5"), 0, "rows")
    data = write_training_set(images, ("3", "4", "5"), grown.classes, folder / "data", "drop")
    state, shared = teacher.state(), teacher.split().shared_parameters
    generator = torch.Generator().manual_seed(0)
    direction = {key: 1e-3 * torch.randn(state[key].shape, generator=generator) for key in shared}
    target = DirectionalTarget({key: state[key] for key in shared}, direction)

    def run(method: MethodSettings | None) -> float:
        clock = _Clock()
        request = StageRequest(
            data=data.data,
            folder=folder / "train",
            seed=0,
            train=settings,
            method=method or MethodSettings(name="plain"),
            epochs=settings.epochs,
            teacher=teacher if method else None,
            directional=target if method and method.directional_consistency else None,
            progress=lambda progress: clock.tick(),
        )
        if method is None:
            _plain(grown.clone(), request, clock)
        else:
            grown.clone().train_stage(request)
        return clock.seconds_per_step

    return run


def _plain(detector: Detector, request: StageRequest, clock: _Clock) -> None:
    """Ultralytics' own trainer class on the same network, with nothing of ours in it."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    from duet.detectors.ultralytics_stage import trainer_settings

    trainer = DetectionTrainer(overrides=trainer_settings(request))
    trainer.validate = lambda: ({}, 0.0)  # a stage does not validate either
    trainer.final_eval = lambda: None
    trainer.add_callback("on_train_batch_end", lambda _: clock.tick())
    trainer.model = detector.model
    torch.set_num_threads(request.train.threads or os.cpu_count() or 1)
    trainer.train()


class _Clock:
    """Seconds per step, the first one (set-up, warm caches) left out."""

    def __init__(self) -> None:
        self.ticks: list[float] = []

    def tick(self) -> None:
        self.ticks.append(time.perf_counter())

    @property
    def seconds_per_step(self) -> float:
        return (self.ticks[-1] - self.ticks[0]) / (len(self.ticks) - 1)


def _show(times: dict[str, list[float]]) -> None:
    names = list(times)
    table = Table("variant", "ratio to plain: median", "min", "max", title="Seconds per training step, as ratios")
    for name in names:
        ratios = [value / plain for value, plain in zip(times[name], times[names[0]])]
        table.add_row(name, f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f}", f"{max(ratios):.3f}")
    Console().print(table)


if __name__ == "__main__":
    app()
