"""YAML and JSON from outside: read without running anything, and refused when they are too large or too deep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from duet.errors import InputError

MOST_YAML_BYTES = 10_000_000
MOST_JSON_BYTES = 2_000_000_000
DEEPEST = 50  # mappings and lists inside one another
MOST_NODES = 1_000_000  # of a YAML document, its aliases written out


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        InputError: naming file and line when it cannot be read, is too large or too deep, or is no mapping.
    """
    values = parse_yaml(read_bytes(path, MOST_YAML_BYTES), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of keys to values, found {type(values).__name__}")
    return values


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: naming the file when it cannot be read or is too large or deep, and the line when it is not JSON.
    """
    return parse_json(read_bytes(path, MOST_JSON_BYTES), str(path))


def parse_yaml(data: bytes | str, where: str) -> Any:
    """The value of a YAML document.

    Args:
        data: its text.
        where: where it stands, for messages.

    Raises:
        InputError: when it is not YAML, or too deep, or would be too large with its aliases written out.
    """
    text = _text(data, where)
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _refuse_large(node, where)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{where}{line}: not YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise InputError(f"{where}: nested too deeply, expected at most {DEEPEST} levels") from error
    except (ValueError, TypeError) as error:  # a date such as 2026-13-45, a mapping as a key
        raise InputError(f"{where}: not YAML: {error}") from error


def parse_json(data: bytes | str, where: str) -> Any:
    """The value of a JSON document.

    Raises:
        InputError: when it is not JSON, or too deep.
    """
    try:
        return json.loads(_text(data, where))
    except json.JSONDecodeError as error:
        raise InputError(f"{where}, line {error.lineno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"{where}: nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"{where}: not JSON: {error}") from error


def read_bytes(path: Path, most: int) -> bytes:
    """The content of a file.

    Args:
        path: the file.
        most: the largest size in bytes that is read.

    Raises:
        InputError: when it cannot be read or is larger.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise InputError(f"{path}: too large, {size:,} bytes where at most {most:,} are expected")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _text(data: bytes | str, where: str) -> str:
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not a UTF-8 text file ({error.reason})") from error


def _refuse_large(node: yaml.Node, where: str) -> None:
    sizes: dict[int, int] = {}
    if _size(node, 1, sizes, where) > MOST_NODES:
        raise InputError(f"{where}: too large, its aliases stand for more than {MOST_NODES:,} values")


def _size(node: yaml.Node, depth: int, sizes: dict[int, int], where: str) -> int:
    """Number of values under a node; an alias counts as often as it is used."""
    if depth > DEEPEST:
        raise InputError(f"{where}: nested too deeply, expected at most {DEEPEST} levels")
    if id(node) in sizes:
        return sizes[id(node)]
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    sizes[id(node)] = size = 1 + sum(_size(child, depth + 1, sizes, where) for child in children)
    return size
