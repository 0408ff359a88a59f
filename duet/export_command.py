"""``duet export``: a deployed detector in an exchange format, checked against the detector before it is left there."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from duet.errors import InputError, nearest
from duet.options import TrustOption

if TYPE_CHECKING:
    from duet.detectors.base import Detector
    from duet.monitor import Monitor
    from duet.parity import Parity


@dataclass(frozen=True)
class Format:
    """An exchange format.

    Args:
        suffix: what its file or folder name ends with; runtimes tell formats by it.
        runtime: the package that runs it; None for torch itself.
        is_folder: whether it is a folder.
        fixed_size: whether it takes inputs of one size only.
    """

    suffix: str
    runtime: str | None
    is_folder: bool = False
    fixed_size: bool = False


FORMATS = {
    "onnx": Format(".onnx", "onnxruntime"),
    "openvino": Format("_openvino_model", "openvino", is_folder=True),
    "torchscript": Format(".torchscript", None, fixed_size=True),
    "engine": Format(".engine", "tensorrt"),
}


def export(
    detector: Annotated[str, typer.Argument(help="A .pt or .safetensors file, a run folder, or the name of weights.")],
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.")] = "onnx",
    out: Annotated[Path | None, typer.Option(help="The file, or OpenVINO's folder; in this folder by default.")] = None,
    image_size: Annotated[
        int | None, typer.Option(min=32, help="Side of the input in pixels; that of training by default.")
    ] = None,
    dynamic: Annotated[bool, typer.Option(help="Leave batch, height and width open (not TorchScript).")] = True,
    images: Annotated[
        list[str] | None, typer.Option(help="Pictures for the check, a folder or pattern; demo scenes by default.")
    ] = None,
    scenes: Annotated[int, typer.Option(min=1, help="How many pictures are compared.")] = 50,
    confidence: Annotated[float, typer.Option(min=0, max=1, help="Compare detections from this score on.")] = 0.25,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    trust: TrustOption = False,
) -> None:
    """Export, run both on real pictures, and leave nothing behind (exit code 1) when they differ."""
    target = _target(form, out, detector, overwrite)
    from duet.deploy import IMAGE_SIZE
    from duet.detectors.families import load_pretrained
    from duet.monitor import ConsoleMonitor

    opened = load_pretrained(detector, trust)
    size = image_size or opened.image_size or IMAGE_SIZE
    if size % 32:
        raise InputError(f"--image-size {size}: expected a multiple of 32")
    with ConsoleMonitor() as monitor, tempfile.TemporaryDirectory() as folder:
        pictures = _pictures(images, scenes, monitor) if _runtime_is_there(form) else []
        monitor.begin(f"export: {form}", None)
        written = opened.export(form, Path(folder), size, dynamic)
        verdict = f"skipped, because the package '{FORMATS[form].runtime}' is not installed"
        if pictures:
            square = FORMATS[form].fixed_size or not dynamic
            parity = check_export(opened, written, pictures, size, confidence, square, monitor)
            verdict = str(parity)
            if not parity.passed:
                _give_up(parity, confidence)
        _put(written, target)
    Console(highlight=False).print(f"Exported: {target}   Check: {verdict}", soft_wrap=True)


def check_export(
    detector: Detector,
    exported: Path,
    pictures: list[Path],
    image_size: int,
    confidence: float,
    square: bool,
    monitor: Monitor,
) -> Parity:
    """Run a detector and its export on the same pictures.

    Args:
        detector: the detector.
        exported: what its ``export`` wrote.
        pictures: image files.
        image_size: side of the input in pixels.
        confidence: detections from this score on are compared.
        square: pad to a square, for exports of fixed size.
        monitor: progress.

    Raises:
        InputError: when a picture is not readable.
    """
    from duet.config import EvaluationSettings
    from duet.datasets.pictures import read_bgr
    from duet.parity import compare

    settings = EvaluationSettings(confidence=confidence)
    monitor.begin("check: the same pictures through both", 2 * len(pictures))
    ours = detector.predict_pictures(((path, read_bgr(path)) for path in pictures), image_size, settings, square=square)
    theirs = detector.predict_exported(
        exported, ((path, read_bgr(path)) for path in pictures), image_size, settings, square
    )
    found: list[dict] = [{}, {}]
    for side, results in enumerate((ours, theirs)):
        for path, detections in results:
            found[side][path] = detections
            monitor.advance(len(found[0]) + len(found[1]))
    return compare(*found, confidence)


def _target(form: str, out: Path | None, detector: str, overwrite: bool) -> Path:
    if form not in FORMATS:
        raise InputError(f"unknown format '{form}'" + nearest(form, FORMATS))
    known = FORMATS[form]
    target = out or Path(f"{Path(detector).stem}{known.suffix}")
    if not target.name.endswith(known.suffix):
        raise InputError(f"{target}: runtimes tell the format by the name; expected one that ends in '{known.suffix}'")
    if target.exists() and (known.is_folder or target.is_dir()):
        raise InputError(f"{target}: a folder cannot be replaced in one step; delete it, or choose another --out")
    if target.exists() and not overwrite:
        raise InputError(f"{target}: exists; --overwrite replaces it")
    return target


def _runtime_is_there(form: str) -> bool:
    runtime = FORMATS[form].runtime
    return runtime is None or importlib.util.find_spec(runtime) is not None


def _pictures(named: list[str] | None, most: int, monitor: Monitor) -> list[Path]:
    """Real pictures for the check: the user's, or test scenes of all domains of the demo series in turn."""
    from duet.datasets.domain import open_domains
    from duet.datasets.series_file import find_series
    from duet.sources import find_sources

    if named:
        paths = [Path(source.name) for source in find_sources(named) if source.kind == "image"][:most]
        pictures = [path for path in paths if _opens(path)]
        if not pictures:
            raise InputError(f"--images {named[0]}: no readable picture to compare on")
        return pictures
    monitor.begin("demo scenes", None)
    domains = open_domains(find_series("demo"), lambda what, done, total: monitor.advance(done)).values()
    rows = zip(*([image.path for image in domain.test()] for domain in domains))
    return [path for row in rows for path in row][:most]


def _opens(path: Path) -> bool:
    from duet.datasets.pictures import read_bgr

    try:
        read_bgr(path)
    except InputError as error:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"Left out of the check: {error}")
        return False
    return True


def _give_up(parity: Parity, confidence: float) -> None:
    """Say why an export is not left behind, and end with exit code 1."""
    sentence = f"the export does not find what the detector finds ({parity})"
    if not parity.detections and not parity.only_one:
        sentence = (
            f"nothing to compare: neither finds anything from score {confidence:g} on in {parity.pictures} pictures; "
            "give pictures of its classes by --images, or a lower --confidence"
        )
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"Error: {sentence}; nothing was written")
    raise typer.Exit(1)


def _put(written: Path, target: Path) -> None:
    """Copy a finished export to its place, which has the old content or the new one at any instant."""
    from duet.state import write_atomic

    if written.is_file():
        write_atomic(target, lambda temporary: shutil.copyfile(written, temporary))
        return
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        for source in sorted(path for path in written.rglob("*") if path.is_file()):
            copy = partial(shutil.copyfile, source)
            write_atomic(part / source.relative_to(written), copy)
        os.rename(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
