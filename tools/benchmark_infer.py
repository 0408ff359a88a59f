"""``benchmark.py infer``: what a head policy costs at inference, beside the plain model with as many classes.

``plain`` is what Ultralytics builds for so many classes. Its class towers are 64 channels wide below 64 classes; those
of ``rows`` and ``parallel`` keep the 80 of the COCO weights that a series starts from. ``grouped`` are the parallel
heads as grouped convolutions.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from grouped_heads import GroupedHeads
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from ultralytics.nn.tasks import DetectionModel

from duet.detectors.base import Detector
from duet.detectors.families import load_pretrained

PLAIN, ROWS, PARALLEL, GROUPED = "plain", "rows", "parallel", "grouped"
CLASSES_PER_TASK = 3
TASKS = (1, 2, 4, 8)


def infer(
    architecture: Annotated[str, typer.Option(help="Ultralytics YAML; weights do not matter.")] = "yolo11n.yaml",
    image_size: Annotated[int, typer.Option(min=32, help="Side of the square input in pixels.")] = 320,
    rounds: Annotated[int, typer.Option(min=1, help="How often every variant is timed.")] = 30,
    repeat: Annotated[int, typer.Option(min=1, help="Pictures per timing, one after the other.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
    tasks: Annotated[list[int] | None, typer.Option(min=1, help="Numbers of tasks; 1, 2, 4 and 8 by default.")] = None,
) -> None:
    """Latency of one picture without NMS, as Ultralytics runs a deployed checkpoint (fused, channels last).

    With one thread the processor's own time is counted, so that other programs disturb it little.
    """
    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    start = load_pretrained(architecture).with_classes(_names(0), 0)
    networks = {
        (kind, count): _network(architecture, start, kind, count) for count in tasks or TASKS for kind in _kinds(count)
    }
    image = torch.rand(1, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
    times: dict[tuple[str, int], list[float]] = {key: [] for key in networks}
    with torch.inference_mode():
        for network in networks.values():
            network(image)
        for turn in track(range(rounds), description="benchmark"):
            # Forwards and backwards in turn, so that no variant always follows the same one.
            for key in list(networks)[:: 1 if turn % 2 else -1]:
                times[key].append(_seconds(networks[key], image, repeat, clock))
    Console(width=100).print(_table(times))


def _kinds(count: int) -> tuple[str, ...]:
    return (PLAIN, ROWS) if count == 1 else (PLAIN, ROWS, PARALLEL, GROUPED)


def _names(task: int) -> tuple[str, ...]:
    return tuple(f"class{task * CLASSES_PER_TASK + number}" for number in range(CLASSES_PER_TASK))


def _network(architecture: str, start: Detector, kind: str, count: int) -> nn.Module:
    """A network as it is deployed."""
    if kind == PLAIN:
        return _deployed(_plain(architecture, count))
    if kind != GROUPED:
        return _deployed(_grown(start, kind, count))
    network = _deployed(_grown(start, PARALLEL, count))
    network.model[-1] = GroupedHeads(network.model[-1])
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _plain(architecture: str, count: int) -> nn.Module:
    return DetectionModel(architecture, nc=count * CLASSES_PER_TASK, verbose=False)


def _grown(start: Detector, head: str, count: int) -> nn.Module:
    """The network after ``count`` tasks."""
    for task in range(1, count):
        start = start.grown(_names(task), task, head)
    return start.clone().model


def _deployed(network: nn.Module) -> nn.Module:
    network = network.float().eval().fuse(verbose=False).requires_grad_(False)
    return network.to(memory_format=torch.channels_last)


def _seconds(network: nn.Module, image: torch.Tensor, repeat: int, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(repeat):
        network(image)
    return (clock() - started) / repeat


def _table(times: dict[tuple[str, int], list[float]]) -> Table:
    table = Table(title="One picture, without NMS")
    for column in ("Tasks", "Classes", "Head", "Median ms", "× plain", "Best ms", "× plain"):
        table.add_column(column, justify="left" if column == "Head" else "right")
    for (kind, count), values in times.items():
        ratio = statistics.median(own / plain for own, plain in zip(values, times[PLAIN, count]))
        best = min(values) / min(times[PLAIN, count])  # what other programs disturb least
        shown = (1000 * statistics.median(values), ratio, 1000 * min(values), best)
        numbers = [f"{value:.{digits}f}" for value, digits in zip(shown, (1, 3, 1, 3))]
        table.add_row(str(count), str(count * CLASSES_PER_TASK), kind, *numbers)
    return table
