"""A series that trains in a second, and what the folder of a run holds, durations left out."""

import hashlib
import json

from safetensors import safe_open

from duet.state import write_text

SERIES = {
    "name": "tiny",
    "scenes": {"seed": 9, "train_scenes": 4, "test_scenes": 2},
    "other_labels": "drop",
    "unlabelled_images": "keep",
    "train": {"epochs": 1, "image_size": 64, "fliplr": 0.0, "batch": 4, "threads": 1, "workers": 0},
    "tasks": [{"domain": "clear", "classes": ["0", "1", "2"]}, {"domain": "night", "classes": ["3", "4"]}],
}
DETECTOR = {"family": "fcos", "blocks": [1, 1, 1, 1], "channels": 32, "convolutions": 1}


def short_report(document, panels, path, date):
    """In place of ``write_report``: drawing takes as long as all the rest of a tiny run."""
    write_text(path, "report\n")


def timeless(value):
    """Without durations and memory, and without hashes of files whose headers have no order."""
    if isinstance(value, dict):
        left_out = ("timing", "sha256", "seconds", "peak_memory_mb")
        return {key: timeless(inner) for key, inner in value.items() if key not in left_out}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def content_of(path):
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as stream:
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
            hashes = {key: hashlib.sha256(value.tobytes()).hexdigest() for key, value in tensors.items()}
            return hashes, stream.metadata()
    if path.suffix == ".json":
        return timeless(json.loads(path.read_text()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def content(folder):
    """What a folder holds, by name; hidden files too, so that leftovers show."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "state.json")]
    return {path.relative_to(folder).as_posix(): content_of(path) for path in files}
