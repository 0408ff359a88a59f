"""Plain state dicts saved by ``torch.save``, read without running anything they contain."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from merging.checks import first_line
from merging.sources import StateSource

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")


def open_torch_checkpoint(path: Path) -> StateSource:
    """Open a file that holds a mapping of names to tensors and nothing else.

    ``torch.load(weights_only=True)`` reads it: code in the file is never run. Checkpoints that hold modules, optimizers
    or nested mappings are refused by the name of what they hold; take their state dict first.

    Args:
        path: a file written by ``torch.save(model.state_dict(), path)``.

    Returns:
        The model, its tensors mapped from the file.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it is damaged or holds anything else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with _only_tensors():
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from None
    except PermissionError:
        raise
    except Exception as error:  # the unpickler meets damage with whatever its next step raises
        raise ValueError(f"{path}: damaged, or no file of torch.save ({first_line(error)})") from None
    if not isinstance(state, Mapping):
        raise ValueError(f"{path}: expected a state dict, got {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path}: expected tensors only, got {type(value).__name__} under {key!r}")
    return StateSource(state, str(path), (path,))


@contextmanager
def _only_tensors() -> Iterator[None]:
    """Other code of this process may have allowed classes of its own; here none is expected."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def _refusal(path: Path, message: str) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"(?:global|class) ([\w.]+\.[\w.]+)", message)
    if found is None:
        return f"{path}: damaged, or no file of torch.save ({first_line(message)})"
    return f"{path}: holds {found.group(1)}, which is not opened: expected a state dict of tensors only"
