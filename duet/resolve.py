"""Resolve a run's configuration from its layers (see ``duet.config``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from duet.config import EvaluationSettings, MethodSettings, RunConfig, TrainSettings, flat, overlay, validate
from duet.datasets.series_file import find_series
from duet.documents import read_yaml
from duet.errors import InputError
from duet.methods import method_settings

MOST_NAMED = 3  # keys in a message


def resolve_config(
    path: Path | None, options: Mapping[str, Any], assignments: Mapping[str, Any] | None = None
) -> RunConfig:
    """Lay the layers over one another and validate the result.

    Args:
        path: YAML file, or None.
        options: named options of the command line; ``method`` is a name.
        assignments: nested values of ``--set``.

    Raises:
        InputError: one sentence about the first key that is wrong.
    """
    values = read_yaml(path) if path is not None else {}
    values = _with_method(values, options)
    values = overlay(values, {key: value for key, value in options.items() if key != "method"})
    values = overlay(values, assignments or {})
    source = str(path) if path is not None else "configuration"
    if "series" in values and not isinstance(values["series"], str):
        raise InputError(f"{source}: key 'series' is {values['series']!r}: expected a name or a path")
    root = Path(values["root"]) if isinstance(values.get("root"), str) else None
    section = find_series(values.get("series", "demo"), root).section
    validate(TrainSettings, section.train, f"series '{section.name}', train")
    validate(EvaluationSettings, section.evaluation, f"series '{section.name}', evaluation")
    for key in ("train", "evaluation"):
        values[key] = overlay(getattr(section, key), _mapping(values.get(key, {}), key, source))
    named = _mapping(values.pop("method", {}), "method", source)
    settings = method_settings(str(named.get("name", "duet"))).model_dump()
    values["method"] = overlay(_for_merger(settings, named.get("merge")), named)
    method = validate(MethodSettings, values["method"], f"{source}, method")
    _refuse_bad_merger(method, source)
    _refuse_idle(method, settings, named, source)
    if method.goes_on:  # what the method itself sets, and an option took the meaning from
        values["method"] |= {key: MethodSettings.model_fields[key].default for key in method.idle}
    config = validate(RunConfig, values, source)
    _refuse_rising_rates(config.method, source)
    return config


def what_differs(path: Path, config: RunConfig) -> str:
    """How the configuration of a run folder's config.yaml differs from another one, for a message.

    Args:
        path: of the config.yaml; when it cannot be read, the message points at it.
        config: the other one.
    """
    try:
        theirs = flat(validate(RunConfig, read_yaml(path), str(path)).deciding())
    except InputError:
        return "its config.yaml says which"
    ours = flat(config.deciding())
    keys = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
    named = [f"{key} is {_written(theirs, key)} there and {_written(ours, key)} here" for key in keys[:MOST_NAMED]]
    rest = [f"{len(keys) - MOST_NAMED} more"] if len(keys) > MOST_NAMED else []
    return "; ".join([*named, *rest]) or "its series or its pretrained weights are others"


def _written(values: Mapping[str, Any], key: str) -> str:
    """A setting as one writes it."""
    return json.dumps(values.get(key), ensure_ascii=False)


def _for_merger(settings: dict[str, Any], merge: Any) -> dict[str, Any]:
    """The method's settings without its own merger's options when another merger is asked for."""
    own = settings["merge"]
    if isinstance(merge, Mapping) and own is not None and merge.get("name", own["name"]) != own["name"]:
        return {**settings, "merge": None}
    return settings


def _refuse_bad_merger(method: MethodSettings, source: str) -> None:
    """Find a wrong merger, option or value before anything is trained."""
    from merging.registry import try_options

    if method.merge is None:
        return
    try:
        try_options(method.merge.name, method.merge.options)
    except (ValueError, TypeError) as error:
        raise InputError(f"{source}: key 'method.merge': {error}") from error


def _refuse_idle(method: MethodSettings, own: Mapping[str, Any], named: Mapping[str, Any], source: str) -> None:
    """An option that somebody set and that does nothing would look like a result.

    The method's own values are allowed where they are kept, so that a run's config.yaml can be read again.
    """
    chosen, defaults = method.model_dump(), MethodSettings(name=method.name).model_dump()
    for key, reason in method.idle.items():
        allowed = (defaults[key],) if method.goes_on else (own[key], defaults[key])
        if key in named and chosen[key] not in allowed:
            raise InputError(f"{source}: key 'method.{key}' has no meaning with 'method.{reason}'")


def _refuse_rising_rates(method: MethodSettings, source: str) -> None:
    """The rate where nothing is seen is the lower one."""
    for key, full in (("unseen_lr_factor", "shared_lr_factor"), ("unseen_tower_lr_factor", "tower_lr_factor")):
        low, high = getattr(method, key), getattr(method, full)
        if low is not None and low > high:
            raise InputError(
                f"{source}: key 'method.{key}' is {low:g}: expected at most 'method.{full}', which is {high:g}; "
                "null leaves it out"
            )


def _with_method(values: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The file's ``method`` as a mapping, its name replaced by the option's."""
    named = values.get("method", {})
    if isinstance(named, str):
        named = {"name": named}
    if "method" in options:
        other = isinstance(named, Mapping) and named.get("name", options["method"]) != options["method"]
        named = {"name": options["method"]} if other else {**named, "name": options["method"]}
    return {**values, "method": named}


def _mapping(value: Any, key: str, source: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{source}: key '{key}' is {value!r}: expected a mapping of keys to values")
    return value
