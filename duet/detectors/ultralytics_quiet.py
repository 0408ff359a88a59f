"""Ultralytics as a library: no lines of its own, and no experiment of its own for every stage."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ultralytics.utils import LOGGER, SETTINGS

# What duet.log_targets writes to: with Ultralytics' own modules switched on as well, each stage would begin a further
# run there (MLflow's is on by default as soon as the package is installed).
OWN_LOGGERS = ("tensorboard", "mlflow", "wandb")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ultralytics' lines and its three loggers are off inside; the user's settings file is not written."""
    level, chosen = LOGGER.level, {name: SETTINGS[name] for name in OWN_LOGGERS}
    LOGGER.setLevel(logging.WARNING)
    _set(dict.fromkeys(OWN_LOGGERS, False))
    try:
        yield
    finally:
        LOGGER.setLevel(level)
        _set(chosen)


def _set(values: dict[str, bool]) -> None:
    for name, value in values.items():
        dict.__setitem__(SETTINGS, name, value)  # the class's own method would write the file
