"""``benchmark.py fuse``: memory and time of learning a mask, against the limits that the method is meant to keep.

Every measurement runs in a process of its own (``benchmark_fuse.py MEASURE FOLDER …``). Memory is what the process grew
by, libraries left out; times are ratios within one process, variants run in turn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import nn

from merging.adamerging import adamerging
from merging.adaptation import UnlabelledTask
from merging.concrete_merging import MaskSettings, concrete_adamerging, concrete_task_arithmetic
from merging.family import Family, open_module_family

SIDE = 1024
TOKENS, WIDTH, CLASSES = 50, 384, 10
STEP_LIMIT = 1.5


def fuse(
    tasks: Annotated[int, typer.Option(min=1, help="Number of fine-tuned models.")] = 4,
    scalars: Annotated[int, typer.Option(min=SIDE**2, help="Parameters for the memory measurement.")] = 25_000_000,
    layers: Annotated[int, typer.Option(min=1, help="Transformer layers for the time measurement.")] = 4,
    batch: Annotated[int, typer.Option(min=1, help="Samples of a task per step.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="How often each step is timed.")] = 5,
) -> None:
    """Memory of learning a mask, and time per step beside a plain forward and backward pass."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="benchmark_fuse_") as name:
        memory = Table("training a mask", "units of P × 4 bytes", "limit", "MB", title=f"Memory, {tasks} tasks")
        for measure in ("task arithmetic", "layer-wise", "layer-wise, bfloat16"):
            found = _measure(["memory", name, str(tasks), str(scalars), measure])
            memory.add_row(measure, f"{found['units']:.2f}", f"{tasks + 6}", f"{found['mb']:,.0f}")
        console.print(memory)
        found = _measure(["time", name, str(tasks), str(layers), str(batch), str(rounds)])
    title = f"Time per step, {tasks} tasks, {found['scalars']:,} parameters, batch {batch} × {TOKENS} tokens"
    table = Table("step", "seconds", "plain passes", "task vectors", "limit", "step / limit", title=title)
    for step, row in found["steps"].items():
        cells = (row["seconds"], row["plain"], row["vectors"], row["limit"], row["ratio"])
        table.add_row(step, *(f"{value:.3f}" for value in cells))
    console.print(table)


def _measure(arguments: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def _memory(folder: Path, tasks: int, scalars: int, measure: str) -> dict[str, float]:
    """Peak growth while two steps of each phase run, in units of the model's size."""
    count = max(1, scalars // SIDE**2)
    _train(
        nn.Linear(SIDE, 2, bias=False), [{"weight": torch.ones(2, SIDE)}], measure
    )  # loads libraries, starts threads
    paths = []
    for index in range(tasks):
        path = folder / f"memory{index}-{count}.safetensors"
        if not path.exists():
            _write_chain(path, count, index)
        paths.append(path)
    before = _resident("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="ascii") as stream:
        stream.write("5")  # the peak starts anew
    module = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(count)))
    _train(module, paths, measure)
    grown = _resident("VmHWM") - before
    size = 4 * sum(parameter.numel() for parameter in module.parameters())
    return {"units": grown / size, "mb": grown / 1e6}


def _train(module: nn.Module, models: list[Any], measure: str) -> None:
    dtype = torch.bfloat16 if "bfloat16" in measure else torch.float32
    family = open_module_family(module, models, dtype=dtype)
    made = [UnlabelledTask(str(k), lambda: torch.randn(2, SIDE), lambda run, x: run(x)) for k in range(len(models))]
    settings = MaskSettings(steps=3)
    if measure == "task arithmetic":
        concrete_task_arithmetic(family, made, settings=settings)
    else:
        concrete_adamerging(family, made, settings=settings, coefficient_steps=2)


def _write_chain(path: Path, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layers = {f"{n}.weight": torch.randn(SIDE, SIDE, generator=generator) / SIDE**0.5 for n in range(count)}
    save_file(layers, path)


def _resident(name: str) -> int:
    """Bytes of this process, from /proc."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def _time(tasks: int, layers: int, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds per step, and of what it is compared with, in turn."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 6, 4 * WIDTH, dropout=0.0, batch_first=True)
    module = nn.Sequential(nn.TransformerEncoder(layer, layers, enable_nested_tensor=False), nn.Linear(WIDTH, CLASSES))
    models = [
        {key: tensor + 0.01 * torch.randn_like(tensor) for key, tensor in module.state_dict().items()}
        for _ in range(tasks)
    ]
    family = open_module_family(module, models)
    inputs = itertools.cycle([torch.randn(batch, TOKENS, WIDTH)])
    made = [UnlabelledTask(str(k), inputs.__next__, lambda forward, x: forward(x).mean(1)) for k in range(tasks)]
    variants = _variants(family, made)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            start = time.process_time()
            run()
            if turn:  # the first turn warms caches and allocators
                seconds[name].append(time.process_time() - start)
    return {"scalars": family.scalars, "steps": _rows(seconds)}


def _variants(family: Family, tasks: list[UnlabelledTask]) -> dict[str, Callable[[], Any]]:
    """What is timed; a step is the difference of two runs, so that the final merge does not count."""
    module = family.module

    def plain() -> None:
        losses = [task.loss(task.logits(module, task.next_batch())) for task in tasks]
        torch.stack(losses).sum().backward()
        module.zero_grad(set_to_none=True)

    def vectors() -> None:
        for key, base in family.base.items():
            total = torch.zeros_like(base)
            for vector in family.vectors:
                total.add_(vector[key])

    def mask(steps: int) -> None:
        concrete_task_arithmetic(family, tasks, settings=MaskSettings(steps=steps))

    def both(steps: int) -> None:
        concrete_adamerging(family, tasks, settings=MaskSettings(steps=steps), coefficient_steps=0)

    return {
        "plain": plain,
        "vectors": vectors,
        "Concrete task arithmetic 1": lambda: mask(1),
        "Concrete task arithmetic 3": lambda: mask(3),
        "Concrete layer-wise AdaMerging 1": lambda: both(1),
        "Concrete layer-wise AdaMerging 3": lambda: both(3),
        "Layer-wise AdaMerging 1": lambda: adamerging(family, tasks, steps=1),
        "Layer-wise AdaMerging 3": lambda: adamerging(family, tasks, steps=3),
    }


def _rows(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    rows = {}
    for name in ("Concrete task arithmetic", "Layer-wise AdaMerging", "Concrete layer-wise AdaMerging"):
        passes = 2 if name.startswith("Concrete layer") else 1  # inner and upper level have batches of their own
        found = []
        for turn in range(len(seconds["plain"])):
            step = (seconds[f"{name} 3"][turn] - seconds[f"{name} 1"][turn]) / 2
            plain, vectors = passes * seconds["plain"][turn], passes * seconds["vectors"][turn]
            found.append((step, plain, vectors, STEP_LIMIT * plain + vectors))
        columns = [statistics.median(column) for column in zip(*found)]
        ratio = statistics.median(step / limit for step, _, _, limit in found)
        rows[name] = dict(zip(("seconds", "plain", "vectors", "limit"), columns)) | {"ratio": ratio}
    return rows


def _process() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("measure", choices=("memory", "time"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("rest", nargs="*")
    given = parser.parse_args()
    if given.measure == "memory":
        tasks, scalars, measure = given.rest
        found: dict[str, Any] = _memory(given.folder, int(tasks), int(scalars), measure)
    else:
        found = _time(*map(int, given.rest))
    print(json.dumps(found))


if __name__ == "__main__":
    _process()
