"""What commands that call the merging core or work through a data set have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID

from duet.errors import InputError


@contextmanager
def one_sentence() -> Iterator[None]:
    """What the core refuses is the user's input; the command line shows it as one sentence."""
    try:
        yield
    except (KeyError, ValueError, TypeError, OSError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error  # str(KeyError) quotes it
        raise InputError(str(text)) from error


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar per part of the work, on a terminal; called with the part, what is done, and the total."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def show(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = progress.add_task(part)
            progress.update(tasks[part], completed=done, total=total)

        yield show
