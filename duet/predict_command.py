"""``duet predict``: a deployed detector on images, folders, videos and streams."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from duet.errors import InputError
from duet.options import TrustOption


def predict(
    detector: Annotated[str, typer.Argument(help="A .pt or .safetensors file, a run folder, or the name of weights.")],
    source: Annotated[
        list[str], typer.Argument(help="Images, folders, patterns, videos; or one stream: a URL, a camera's number.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the annotated pictures and videos.")] = Path("predictions"),
    draw: Annotated[bool, typer.Option(help="Write annotated pictures and videos.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file, one JSON document.")
    ] = None,
    coco_file: Annotated[
        Path | None, typer.Option("--coco", help="Write COCO results; NAME.images.json explains their numbers.")
    ] = None,
    confidence: Annotated[float, typer.Option(min=0, max=1, help="Leave out detections below this score.")] = 0.25,
    iou: Annotated[float, typer.Option(min=0.01, max=1, help="Overlap from which a box counts as repeated.")] = 0.7,
    max_detections: Annotated[int, typer.Option(min=1, help="Most detections in one picture.")] = 300,
    image_size: Annotated[
        int | None, typer.Option(min=32, help="Longer side of the input in pixels; that of training by default.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures that run together.")] = 32,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after so many pictures or frames.")] = None,
    trust: TrustOption = False,
) -> None:
    """Find objects; a file that cannot be read is named, the rest is still done, and the exit code is 1."""
    from duet.config import EvaluationSettings
    from duet.deploy import PredictRequest, coco_names_file, refuse_outputs
    from duet.deploy import predict as run
    from duet.detectors.families import load_pretrained
    from duet.monitor import ConsoleMonitor
    from duet.report.rows import counted
    from duet.sources import find_sources

    if not draw and json_file is None and coco_file is None:
        raise InputError("nothing to write: expected --json, --coco, or annotated pictures")
    if json_file is not None and coco_file is not None and json_file in (coco_file, coco_names_file(coco_file)):
        raise InputError(f"--json and --coco: expected two files, found {json_file} twice")
    find_sources(source)  # a wrong path is told before a detector is opened
    request = PredictRequest(
        sources=tuple(source),
        settings=EvaluationSettings(confidence=confidence, iou=iou, max_detections=max_detections),
        image_size=image_size,
        batch=batch,
        annotated=out if draw else None,
        json_file=json_file,
        coco_file=coco_file,
        most_frames=frames,
    )
    refuse_outputs(request)
    with ConsoleMonitor() as monitor:
        result = run(load_pretrained(detector, trust), request, monitor)
    written = [f"{what}: {path}" for what, path in (("JSON", json_file), ("COCO", coco_file)) if path is not None]
    if draw and result.frames:
        written.insert(0, f"Annotated: {out}")
    found = f"{counted(result.detections, 'object')} in {counted(result.frames, 'picture')}"
    Console().print(f"{found}.   {'   '.join(written)}", soft_wrap=True)
    for _, why in result.failed:
        Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"Error: {why}")
    if result.failed:
        raise typer.Exit(1)
