"""Where things are: the project's data files, the weights, and the cache shared between runs."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def project_root() -> Path | None:
    """The source checkout this package is run from, or None for an installed wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "data" / "series").is_dir() else None


def data_folder(kind: str) -> Path:
    """The folder of the shipped data files of one kind: ``series``, ``published`` or ``weights``."""
    root = project_root()
    if root is None:
        return _PACKAGE / "_data" / kind
    return root / "weights" if kind == "weights" else root / "data" / kind


def cache_folder() -> Path:
    """Generated scenes, shifted domains and reference models; ``DUET_CACHE`` or ``~/.cache/duet``."""
    return Path(os.environ.get("DUET_CACHE") or Path.home() / ".cache" / "duet").expanduser()


def weights_folder() -> Path:
    """Pretrained weights; ``DUET_WEIGHTS``, the checkout's ``weights`` folder, or the cache."""
    if os.environ.get("DUET_WEIGHTS"):
        return Path(os.environ["DUET_WEIGHTS"]).expanduser()
    root = project_root()
    return root / "weights" if root is not None else cache_folder() / "weights"


def stays_inside(path: str) -> bool:
    """Whether a relative path, as a file from outside names it, stays in the folder that it is relative to."""
    plain = path.replace("\\", "/")
    absolute = plain.startswith("/") or (len(plain) > 1 and plain[1] == ":")
    return bool(plain) and not absolute and ".." not in plain.split("/") and "\0" not in plain
