"""Text classification tasks over English that every machine with Python has: the sources of its standard library.

Nothing is imported or run: the files are parsed. Which sentences there are depends on the version of Python; no
sentence both trains and tests.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

Split = Literal["train", "unlabelled", "test"]
# Package → its files, by the beginning of their path. Tests and generated tables are left out.
PACKAGES = {
    "asyncio": ("asyncio/",),
    "email": ("email/", "mailbox.py", "smtplib.py", "imaplib.py", "poplib.py"),
    "xml": ("xml/", "html/"),
    "numbers": ("statistics.py", "fractions.py", "decimal.py", "_pydecimal.py", "random.py"),
}
ORIGINS = ("docstring", "error message", "language reference")
COMMENT = len(ORIGINS)  # no class: people write comments and docstrings alike
ORDERS = ("as written", "words shuffled")
_WORDS = (5, 24)


@dataclass(frozen=True)
class Sentence:
    """One sentence and where it stands.

    Args:
        text: the sentence.
        origin: index in ``ORIGINS``, or ``COMMENT``.
        file: path below the standard library.
    """

    text: str
    origin: int
    file: str


@dataclass(frozen=True)
class TextTask:
    """One task: classes, and how labelled texts come from sentences.

    Args:
        name: of the task.
        classes: names, in the order of the labels.
        label: takes a sentence and a generator, and gives text and label; ``None`` for a sentence that does not count.
    """

    name: str
    classes: tuple[str, ...]
    label: Callable[[Sentence, np.random.Generator], tuple[str, int] | None]


def texts(task: TextTask, split: Split, count: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Labelled texts of a task, classes as equally frequent as there are sentences.

    Args:
        task: which.
        split: of every ten sentences, six train, two are unlabelled, two test.
        count: at most so many.
        seed: of the choice.

    Returns:
        Texts and labels.
    """
    generator = np.random.default_rng([seed, ("train", "unlabelled", "test").index(split), *task.name.encode()])
    groups: list[list[str]] = [[] for _ in task.classes]
    found = [sentence for sentence in sentences() if _split_of(sentence.text) == split]
    for place in generator.permutation(len(found)):
        labelled = task.label(found[place], generator)
        if labelled is not None:
            groups[labelled[1]].append(labelled[0])
    chosen = []
    for label, members in enumerate(groups):
        chosen += [(text, label) for text in members[: -(-count // len(groups))]]
    chosen = [chosen[place] for place in generator.permutation(len(chosen))[:count]]
    return [text for text, _ in chosen], [label for _, label in chosen]


@cache
def sentences() -> tuple[Sentence, ...]:
    """Sentences of docstrings, comments, error messages and the language reference, each once."""
    root = Path(sysconfig.get_paths()["stdlib"])
    seen: dict[str, Sentence] = {}
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "encodings"}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if skipped.intersection(name.parts) or "pydoc_data" in name.parts:
            continue
        for sentence in _of_file(path, name.as_posix()):
            seen.setdefault(sentence.text, sentence)
    for sentence in _of_reference():
        seen.setdefault(sentence.text, sentence)
    return tuple(seen.values())


def _of_file(path: Path, name: str) -> Iterator[Sentence]:
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, ValueError, OSError):
        return  # a file in another encoding, or damaged, has nothing to give
    for node in ast.walk(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _kept(ast.get_docstring(node) or "", 0, name)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            message = node.exc.args[0]
            if isinstance(message, ast.Constant) and isinstance(message.value, str):
                yield from _kept(message.value, 1, name)
    for line in source.splitlines():
        if line.lstrip().startswith("#"):
            yield from _kept(line.lstrip("#! \t"), COMMENT, name)


def _of_reference() -> Iterator[Sentence]:
    """The prose of the language reference, which ``help()`` shows."""
    from pydoc_data.topics import topics

    for name, text in sorted(topics.items()):
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.!?])\s+", paragraph.strip()):
                yield from _kept(re.sub(r'[*"]', "", sentence), 2, name)


def _kept(text: str, origin: int, file: str) -> Iterator[Sentence]:
    """The first sentence, if it is one: a few words, mostly letters. Its end and its capitals would give it away."""
    first = re.split(r"(?<=[.!?])\s|\n\s*\n", text.strip(), maxsplit=1)[0]
    plain = " ".join(first.split()).rstrip(".!:;,").lower()
    letters = sum(character.isalpha() or character == " " for character in plain)
    if _WORDS[0] <= len(plain.split()) <= _WORDS[1] and letters > 0.85 * len(plain) and plain.isascii():
        yield Sentence(plain, origin, file)


def _split_of(text: str) -> Split:
    place = hashlib.sha256(text.encode()).digest()[0] % 10
    return "train" if place < 6 else "unlabelled" if place < 8 else "test"


def _origin(sentence: Sentence, generator: np.random.Generator) -> tuple[str, int] | None:
    return None if sentence.origin == COMMENT else (sentence.text, sentence.origin)


def _package(sentence: Sentence, generator: np.random.Generator) -> tuple[str, int] | None:
    for label, files in enumerate(PACKAGES.values()):
        if sentence.file.startswith(files):
            return sentence.text, label
    return None


def _order(sentence: Sentence, generator: np.random.Generator) -> tuple[str, int] | None:
    """Half of the sentences have their words in random order."""
    words = sentence.text.split()
    if len(words) < 6:
        return None
    if generator.random() < 0.5:
        return sentence.text, 0
    return " ".join(words[place] for place in generator.permutation(len(words))), 1


TEXT_TASKS: dict[str, TextTask] = {
    task.name: task
    for task in (
        TextTask("origin", ORIGINS, _origin),
        TextTask("package", tuple(PACKAGES), _package),
        TextTask("order", ORDERS, _order),
    )
}
