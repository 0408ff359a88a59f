"""How long a large VOC set takes to index, against the standard library, and to open again: ``benchmark.py data``."""

from __future__ import annotations

import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from duet.datasets.index import read_source
from duet.datasets.source import Source

NAMES = tuple(f"class{number}" for number in range(20))
SIZE = (320, 240)  # width, height


def data(
    images: Annotated[int, typer.Option(help="Images of the generated set.")] = 20_000,
    boxes: Annotated[int, typer.Option(help="Boxes per image.")] = 5,
    rounds: Annotated[int, typer.Option(help="How often everything is measured.")] = 3,
) -> None:
    """Index a generated VOC set and open it again, beside the standard library's parsing of the same files."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = generate_voc(root / "voc", images, boxes)
        times: dict[str, list[tuple[float, float]]] = {"parse": [], "read": [], "index": [], "again": []}
        for number in range(rounds):
            os.environ["DUET_CACHE"] = str(root / f"cache{number}")
            times["parse"].append(_seconds(lambda: _parse(source)))
            times["read"].append(_seconds(lambda: _parse_and_read(source)))
            times["index"].append(_seconds(lambda: read_source(source)))
            times["again"].append(_seconds(lambda: read_source(source)))
        _show(times, images, images * boxes, _peak_megabytes(source, root / "cache"))


def generate_voc(folder: Path, images: int, boxes: int) -> Source:
    """A VOC set of one noisy picture under many names, with random boxes.

    Args:
        folder: where to write.
        images: number of images.
        boxes: boxes per image.
    """
    for name in ("JPEGImages", "Annotations"):
        (folder / name).mkdir(parents=True)
    stream = io.BytesIO()
    Image.effect_noise(SIZE, 60).convert("RGB").save(stream, "JPEG", quality=60)
    rng = np.random.default_rng(0)
    for number in range(images):
        stem = f"{number:06d}"
        (folder / "JPEGImages" / f"{stem}.jpg").write_bytes(stream.getvalue())
        (folder / "Annotations" / f"{stem}.xml").write_text(_annotation(stem, boxes, rng))
    return Source("voc", folder / "JPEGImages", folder / "Annotations", NAMES)


def _annotation(stem: str, boxes: int, rng: np.random.Generator) -> str:
    corners = rng.integers(1, 150, (boxes, 2))
    sizes = rng.integers(1, 80, (boxes, 2))
    lines = [
        f"<annotation>\n\t<folder>VOC2007</folder>\n\t<filename>{stem}.jpg</filename>\n\t<source>\n"
        "\t\t<database>generated</database>\n\t</source>\n\t<size>\n"
        f"\t\t<width>{SIZE[0]}</width>\n\t\t<height>{SIZE[1]}</height>\n\t\t<depth>3</depth>\n\t</size>"
    ]
    for (x, y), (width, height), name in zip(corners, sizes, rng.choice(NAMES, boxes)):
        edges = zip(("xmin", "ymin", "xmax", "ymax"), (x, y, x + width, y + height))
        bounds = "\n".join(f"\t\t\t<{edge}>{value}</{edge}>" for edge, value in edges)
        lines.append(
            f"\t<object>\n\t\t<name>{name}</name>\n\t\t<pose>Left</pose>\n\t\t<truncated>0</truncated>\n"
            f"\t\t<difficult>0</difficult>\n\t\t<bndbox>\n{bounds}\n\t\t</bndbox>\n\t</object>"
        )
    return "\n".join([*lines, "</annotation>", ""])


def _parse(source: Source) -> None:
    for path in _label_files(source):
        ElementTree.parse(path)


def _parse_and_read(source: Source) -> list[list[tuple]]:
    """The boxes and names as the shortest loop with the standard library gets them; no picture is looked at."""
    read = []
    for path in _label_files(source):
        rows = []
        for item in ElementTree.parse(path).getroot().findall("object"):
            bounds = item.find("bndbox")
            corners = [float(bounds.find(edge).text) for edge in ("xmin", "ymin", "xmax", "ymax")]
            rows.append((item.find("name").text, int(item.find("difficult").text), corners))
        read.append(rows)
    return read


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of all processors together, child processes included."""
    started, before = time.perf_counter(), sum(os.times()[:4])
    work()
    return time.perf_counter() - started, sum(os.times()[:4]) - before


def _label_files(source: Source) -> list[str]:
    return sorted(entry.path for entry in os.scandir(source.labels))


def _peak_megabytes(source: Source, cache: Path) -> float:
    """Peak memory of a process that does nothing but make the index and open it again (Linux)."""
    program = (
        "from pathlib import Path; from duet.datasets.index import read_source;"
        "from duet.datasets.source import Source;"
        f"source = Source('voc', Path({str(source.images)!r}), Path({str(source.labels)!r}), {source.names!r});"
        "read_source(source); images = read_source(source);"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    environment = {**os.environ, "DUET_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout) / 1024


def _show(times: dict[str, list[tuple[float, float]]], images: int, boxes: int, peak: float) -> None:
    titles = {
        "parse": "standard library: parse the XML files",
        "read": "standard library: parse them and read their boxes",
        "index": "index: read, look at the pictures, check, store",
        "again": "open again",
    }
    columns = ("", "seconds", "ratio", "of all processors", "ratio")
    table = Table(*columns, title=f"{images} images, {boxes} boxes: medians; ratios to parsing alone")
    median = {name: [statistics.median(part) for part in zip(*values)] for name, values in times.items()}
    for name, title in titles.items():
        pairs = zip(median[name], median["parse"])
        table.add_row(title, *(text for value, base in pairs for text in (f"{value:.2f}", f"{value / base:.2f}")))
    Console().print(table)
    Console().print(f"Peak memory of a process that does both: {peak:.0f} MB")
