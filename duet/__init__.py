"""DuET: dual incremental object detection, new classes in new domains without the old pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duet.datasets.series_file import find_series as load_series
    from duet.detectors.families import load_pretrained as load_detector
    from duet.learner import Learner
    from duet.resolve import resolve_config
    from duet.update import Update, update_detector

__version__ = "0.1.0"
__all__ = ["Learner", "Update", "load_detector", "load_series", "resolve_config", "update_detector"]

_PLACES = {
    "Learner": ("duet.learner", "Learner"),
    "Update": ("duet.update", "Update"),
    "load_detector": ("duet.detectors.families", "load_pretrained"),
    "load_series": ("duet.datasets.series_file", "find_series"),
    "resolve_config": ("duet.resolve", "resolve_config"),
    "update_detector": ("duet.update", "update_detector"),
}


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first used: torch and its company take seconds."""
    if name not in _PLACES:
        raise AttributeError(f"module 'duet' has no attribute '{name}'")
    from importlib import import_module

    module, attribute = _PLACES[name]
    return getattr(import_module(module), attribute)
