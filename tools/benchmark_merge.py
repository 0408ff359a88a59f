"""``benchmark.py merge``: time and peak memory of merging models on disk, beside merely reading and writing them.

Every measurement runs in a process of its own (``benchmark_merge.py NAME FOLDER MODELS``), which reports its own time
without imports and its own peak memory. Absolute times depend on the machine and what else it does; the ratios are
those of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from safetensors.torch import load_file, save_file

import merging

SIDE = 1024  # every tensor is a square matrix
BUFFER = 1 << 20
DENSITY = 0.2
WHOLE, STREAM, FLAT, TIES = "read files whole, write one", "read and write through 1 MB", "flat TIES", "TIES"
DUET = "DuET, 2 models"
# Peak of the flat reference per scalar and model: its matrix, magnitudes, and what kthvalue copies (measured: 23.7).
FLAT_BYTES = 24
GROWTH = (2, 4, 8)
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Measurement:
    """What one process reports of itself.

    Args:
        seconds: duration of the work, imports left out.
        peak_mb: peak resident memory (VmHWM), the interpreter and libraries included.
        own_mb: by how much the peak grew during the work.
    """

    seconds: float
    peak_mb: float
    own_mb: float


def merge(
    models: Annotated[int, typer.Option(min=1, help="Number of models beside the base.")] = 8,
    scalars: Annotated[int, typer.Option(min=SIDE**2, help="float32 parameters per model.")] = 100_000_000,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size of a shard.")] = 200,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each measurement; the fastest counts.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="Where the models are written meanwhile.")] = None,
) -> None:
    """Merging sharded safetensors on disk, against the authors' flat TIES and merely reading and writing."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="benchmark_merge_", dir=folder) as name, Progress(console=console) as bars:
        place = Path(name)
        _write_models(place, scalars, models, shard_mb * MEGABYTE, bars)
        names = [measure for measure in MEASURES if measure != FLAT or _flat_fits(scalars, models, console)]
        times = _measure_all(place, [(measure, models) for measure in names], repeat, bars)
        counts = [count for count in GROWTH if count <= models]
        growing = [(measure, count) for measure in GROWING for count in (counts[:1] if measure == DUET else counts)]
        memory = _measure_all(place, growing, 1, bars)
    console.print(_time_table({measure: found for (measure, _), found in times.items()}, models, scalars))
    console.print(_memory_table(memory, counts))


def _write_models(folder: Path, scalars: int, models: int, shard_bytes: int, bars: Progress) -> None:
    """A base and fine-tuned models, in shards with a Hugging Face index."""
    generator = torch.Generator().manual_seed(0)
    names = [f"layers.{index}.weight" for index in range(scalars // SIDE**2)]
    per_shard = max(1, shard_bytes // (4 * SIDE**2))
    shards = [names[start : start + per_shard] for start in range(0, len(names), per_shard)]
    where: dict[str, str] = {}
    for number in range(models + 1):
        (folder / f"model{number}").mkdir()
    for position, keys in enumerate(bars.track(shards, description="write the models"), 1):
        file = f"model-{position:05}-of-{len(shards):05}.safetensors"
        where.update(dict.fromkeys(keys, file))
        base = {key: 0.02 * torch.randn(SIDE, SIDE, generator=generator) for key in keys}
        save_file(base, folder / "model0" / file)
        for number in range(1, models + 1):
            tuned = {key: torch.randn(SIDE, SIDE, generator=generator).mul_(1e-3).add_(base[key]) for key in keys}
            save_file(tuned, folder / f"model{number}" / file)
    for number in range(models + 1):
        (folder / f"model{number}" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    os.sync()


def _flat_fits(scalars: int, models: int, console: Console) -> bool:
    needed, free = FLAT_BYTES * scalars * models, _proc("meminfo", "MemAvailable")
    fits = needed < 0.8 * free  # the files must stay in memory too, or the device would be measured
    if not fits:
        console.print(f"{FLAT} is left out: it needs {needed / 1e9:.0f} of {free / 1e9:.0f} GB that are available")
    return fits


def _measure_all(
    folder: Path, wanted: list[tuple[str, int]], repeat: int, bars: Progress
) -> dict[tuple[str, int], Measurement]:
    """Run every measurement in turn, ``repeat`` rounds; the fastest run of each."""
    runs: dict[tuple[str, int], list[Measurement]] = {what: [] for what in wanted}
    for what in bars.track(wanted * repeat, description="measure"):
        command = [sys.executable, __file__, what[0], str(folder), str(what[1])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"measuring '{what[0]}' failed: {done.stderr.strip().splitlines()[-1]}")
        runs[what].append(Measurement(**json.loads(done.stdout)))
    return {what: min(found, key=lambda run: run.seconds) for what, found in runs.items()}


def _time_table(found: dict[str, Measurement], models: int, scalars: int) -> Table:
    table = Table(title=f"{models} models of {scalars:,} float32 parameters")
    table.add_column("what", no_wrap=True)
    for head in ("seconds", "peak MB", "time / whole", "time / 1 MB", "time / flat", "peak / flat"):
        table.add_column(head, justify="right")
    for name, run in found.items():
        against_flat = ("", "")
        if name.startswith(TIES) and FLAT in found:
            against_flat = (f"{run.seconds / found[FLAT].seconds:.2f}", f"{run.peak_mb / found[FLAT].peak_mb:.2f}")
        ratios = ["" if name == DUET else f"{run.seconds / found[floor].seconds:.2f}" for floor in (WHOLE, STREAM)]
        table.add_row(name, f"{run.seconds:.2f}", f"{run.peak_mb:.0f}", *ratios, *against_flat)
    return table


def _memory_table(found: dict[tuple[str, int], Measurement], counts: list[int]) -> Table:
    heads = [f"{count} models" for count in counts]
    table = Table("method", *heads, title="Peak memory in MB: all, and above that of the process before the merge")
    for name in GROWING:
        runs = [found.get((name, count)) for count in counts]
        table.add_row(name, *(f"{run.peak_mb:.0f}, +{run.own_mb:.0f}" if run else "–" for run in runs))
    return table


def _paths(folder: Path, models: int) -> tuple[Path, list[Path]]:
    return folder / "model0", [folder / f"model{number}" for number in range(1, models + 1)]


def _files(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def _read_whole(folder: Path, models: int) -> None:
    """Every file into memory, one at a time, and as many bytes as one model has back to the device."""
    base, others = _paths(folder, models)
    for file in (file for model in others for file in _files(model)):
        file.read_bytes()
    for file in _files(base):
        content = file.read_bytes()
        with open(folder / "copy.bin", "wb", buffering=0) as stream:
            stream.write(content)
            os.fsync(stream.fileno())
    (folder / "copy.bin").unlink()


def _stream(folder: Path, models: int) -> None:
    """The same through one small buffer, without looking at a single number: nothing that merges can be faster."""
    base, others = _paths(folder, models)
    buffer = bytearray(BUFFER)
    for file in (file for model in others for file in _files(model)):
        with open(file, "rb", buffering=0) as stream:
            while stream.readinto(buffer):
                pass
    for file in _files(base):
        with open(file, "rb", buffering=0) as stream, open(folder / "copy.bin", "wb", buffering=0) as out:
            while got := stream.readinto(buffer):
                out.write(memoryview(buffer)[:got])
            os.fsync(out.fileno())
    (folder / "copy.bin").unlink()


def _merge_with(method: str, hash_inputs: bool = False, most: int | None = None) -> Callable[[Path, int], None]:
    def work(folder: Path, models: int) -> None:
        base, others = _paths(folder, models)
        merging.merge_files(
            method, base, others[:most], folder / "out", max_shard_bytes=200 * MEGABYTE, hash_inputs=hash_inputs
        )

    return work


def _flat_ties(folder: Path, models: int) -> None:
    """The algorithm of the authors' code: one float32 matrix of all task vectors, then whole-matrix operations."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # should memory run out, this process goes first
    base, others = _paths(folder, models)
    state = _load(base)
    keys = sorted(state)
    flat_base = torch.cat([state[key].reshape(-1) for key in keys])
    vectors = torch.vstack([torch.cat([own[key].reshape(-1) for key in keys]) for own in map(_load, others)])
    vectors -= flat_base
    merged = flat_base + _flat_ties_vector(vectors)
    result = dict(zip(keys, (part.view(SIDE, SIDE).clone() for part in merged.split(SIDE**2))))
    save_file(result, folder / "flat.safetensors")
    with open(folder / "flat.safetensors", "rb") as stream:
        os.fsync(stream.fileno())


def _flat_ties_vector(vectors: torch.Tensor) -> torch.Tensor:
    """Trim, elect, disjoint mean of ``(models, scalars)``."""
    scalars = vectors.shape[1]
    limits, _ = vectors.abs().kthvalue(scalars - int(scalars * DENSITY), dim=1, keepdim=True)
    trimmed = vectors * (vectors.abs() >= limits)
    sign = torch.sign(trimmed.sum(dim=0))
    sign[sign == 0] = torch.sign(sign.sum())
    chosen = trimmed * torch.where(sign.unsqueeze(0) > 0, trimmed > 0, trimmed < 0)
    return chosen.sum(dim=0) / (chosen != 0).sum(dim=0).float().clamp(min=1)


def _load(model: Path) -> dict[str, torch.Tensor]:
    return {key: tensor for file in _files(model) for key, tensor in load_file(file).items()}


MEASURES: dict[str, Callable[[Path, int], None]] = {
    WHOLE: _read_whole,
    STREAM: _stream,
    "averaging": _merge_with("averaging"),
    "task arithmetic": _merge_with("task_arithmetic"),
    "task arithmetic, inputs hashed": _merge_with("task_arithmetic", hash_inputs=True),
    DUET: _merge_with("duet", most=2),
    TIES: _merge_with("ties"),
    FLAT: _flat_ties,
}
GROWING = ("averaging", "task arithmetic", DUET)


def _peak_mb() -> float:
    """Peak resident memory of this process; unlike ``ru_maxrss`` it does not include the parent's."""
    return _proc("self/status", "VmHWM") / MEGABYTE


def _proc(file: str, name: str) -> int:
    """A line of ``/proc``, in bytes."""
    with open(f"/proc/{file}") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(name))


def _measure(name: str, folder: Path, models: int) -> Measurement:
    before, start = _peak_mb(), time.perf_counter()
    MEASURES[name](folder, models)
    seconds = time.perf_counter() - start
    for left in (folder / "out", folder / "flat.safetensors"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return Measurement(seconds, _peak_mb(), _peak_mb() - before)


def _child() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=MEASURES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", type=int)
    given = parser.parse_args()
    print(json.dumps(asdict(_measure(given.name, given.folder, given.models))))


if __name__ == "__main__":
    _child()
