"""The detector families, one literal table, and how a detector is opened, stored and restored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from duet.detectors.archives import archive_is_whole
from duet.detectors.base import Description, Detector
from duet.detectors.fcos import FcosDetector
from duet.detectors.rtdetr import RtdetrDetector
from duet.detectors.ultralytics_checkpoint import build_architecture, open_checkpoint
from duet.detectors.yolo import YoloDetector
from duet.documents import read_yaml
from duet.errors import InputError, nearest
from duet.state import digest_of, write_atomic
from duet.weights import find_weights, weights_digest

DIGEST = "sha256"  # in a header: of the rest of it and of all tensors
BESIDE = "beside."  # prefix of tensors that are not the detector's own

ARCHITECTURES = Path(__file__).parent / "models"

FAMILIES: dict[str, type[Detector]] = {"yolo": YoloDetector, "rtdetr": RtdetrDetector, "fcos": FcosDetector}


def load_pretrained(name: str, trust: bool = False) -> Detector:
    """The detector that a run starts from.

    Args:
        name: name of pretrained weights, path of a checkpoint (``.pt``), of a stored detector (``.safetensors``) or of
            a folder with ``detector.safetensors``, or an architecture (``.yaml``), which starts with random weights.
        trust: open a checkpoint that could run code.

    Raises:
        InputError: when the weights cannot be found or are of no known family.
    """
    if name.endswith((".yaml", ".yml")):
        return _untrained(name)
    inside = Path(name) / "detector.safetensors"
    path = inside if inside.is_file() else find_weights(name)
    if path.suffix == ".safetensors":
        return restore_detector(path)
    return _open_plain(path) or open_checkpoint(path, trust)


def _open_plain(path: Path) -> Detector | None:
    """A checkpoint of tensors and plain values that names its family; None for one with objects in it."""
    if not archive_is_whole(path):
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        family = FAMILIES[content["family"]]
        description = Description(content["family"], tuple(content["classes"]), content["architecture"])
    except Exception:  # another kind of checkpoint, or none: the next reader says which
        return None
    detector = _described(family, description, path)
    try:
        detector.load_state(content["model"])
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged, its tensors do not fit its description ({error})") from error
    return detector


def _untrained(name: str) -> Detector:
    """A detector from a YAML file, one of ours or one of Ultralytics', with seeded random weights.

    Under ``family`` the file names another family than Ultralytics' own; tensors that have the same name and shape in
    the weights under ``start_from`` are taken from there.
    """
    own = ARCHITECTURES / name
    path = own if own.is_file() else Path(name)
    layout = read_yaml(path) if path.is_file() else {}
    family = layout.get("family")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family is None:
            detector = build_architecture(str(path) if path.is_file() else name)
        elif family in FAMILIES:
            detector = _described(FAMILIES[family], Description(family, ("object",), layout), path)
        else:
            raise InputError(f"{path}: unknown detector family '{family}'" + nearest(str(family), FAMILIES))
    if "start_from" in layout:
        detector.load_state(_overlaid(detector.state(), load_pretrained(layout["start_from"]).state(), path))
    return detector


def _described(family: type[Detector], description: Description, path: Path) -> Detector:
    try:
        return family.from_description(description)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: does not describe a detector ({type(error).__name__}: {error})") from error


def _overlaid(state: dict[str, Tensor], source: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    same = {key: value for key, value in source.items() if key in state and state[key].shape == value.shape}
    if not same:
        raise InputError(f"{path}: no tensor of the weights under 'start_from' fits")
    return {**state, **same}


@dataclass(frozen=True)
class Stored:
    """The content of a stored detector.

    Args:
        header: the file's metadata.
        state: the detector's tensors.
        beside: further tensors that were stored with it.
    """

    header: Mapping[str, str]
    state: dict[str, Tensor]
    beside: dict[str, Tensor]


def store_detector(
    detector: Detector,
    path: Path,
    beside: Mapping[str, Tensor] | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a detector as safetensors; its description stands in the file's metadata.

    Args:
        detector: the detector.
        path: the file.
        beside: further tensors to keep with its own.
        notes: further entries of the metadata.
    """
    description = detector.describe()
    header = {
        "format": "duet-detector-1",
        "description": json.dumps(
            {
                "family": description.family,
                "classes": list(description.classes),
                "architecture": dict(description.architecture),
            }
        ),
    }
    state = {key: value.contiguous() for key, value in detector.state().items()}
    state.update({f"{BESIDE}{key}": value.contiguous() for key, value in (beside or {}).items()})
    _save(state, path, {**(notes or {}), **header})


def restore_detector(path: Path) -> Detector:
    """Read a detector written by ``store_detector``.

    Raises:
        InputError: when the file is damaged or of another format.
    """
    stored = read_stored(path)
    try:
        values = json.loads(stored.header["description"])
        description = Description(values["family"], tuple(values["classes"]), values["architecture"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, its description cannot be read") from error
    if description.family not in FAMILIES:
        raise InputError(f"{path}: unknown detector family '{description.family}'")
    detector = _described(FAMILIES[description.family], description, path)
    try:
        detector.load_state(stored.state)
    except ValueError as error:
        raise InputError(f"{path}: damaged, its tensors do not fit its description ({error})") from error
    return detector


def read_stored(path: Path) -> Stored:
    """Read what ``store_detector`` wrote, without building the detector.

    Raises:
        InputError: when the file is damaged or of another format.
    """
    header, tensors = _read(path)
    if header.get("format") != "duet-detector-1":
        raise InputError(f"{path}: not a stored detector")
    beside = {key.removeprefix(BESIDE): value for key, value in tensors.items() if key.startswith(BESIDE)}
    return Stored(header, {key: value for key, value in tensors.items() if not key.startswith(BESIDE)}, beside)


def store_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name as safetensors."""
    _save({key: value.contiguous() for key, value in state.items()}, path, {})


def restore_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name.

    Raises:
        InputError: when the file is damaged.
    """
    return _read(path)[1]


def _save(state: Mapping[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """Write tensors and read them back before the file takes its place."""
    content = {**header, DIGEST: _digest(header, state)}

    def same(temporary: Path) -> bool:
        return dict(_read(temporary)[0]) == content  # reading compares the digest with what is there

    write_atomic(path, lambda temporary: save_file(dict(state), temporary, metadata=content), same)


def _digest(header: Mapping[str, str], state: Mapping[str, Tensor]) -> str:
    return digest_of([sorted((key, value) for key, value in header.items() if key != DIGEST), weights_digest(state)])


def _read(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as stream:
            header = stream.metadata() or {}
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from error
    if DIGEST in header and header[DIGEST] != _digest(header, tensors):
        raise InputError(f"{path}: damaged, its content is not what was written")
    return header, tensors
