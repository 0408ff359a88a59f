"""Where models, heads and data come from, by the configuration's ``kind``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

from merging.checks import known, number
from merging.fusion.config import FusionSettings
from merging.fusion.embedded_pictures import embedded_pictures
from merging.fusion.embedded_texts import embedded_texts
from merging.fusion.huggingface import clip_problem, image_problem, text2text_problem, text_problem_of
from merging.fusion.problem import FusionProblem
from merging.fusion.torchvision_models import torchvision_problem

EMBEDDED: dict[str, Callable[..., FusionProblem]] = {
    "embedded-pictures": embedded_pictures,
    "embedded-texts": embedded_texts,
}
SOURCES: dict[str, Callable[[FusionSettings, Path], FusionProblem]] = {
    "clip": clip_problem,
    "image": image_problem,
    "text": text_problem_of,
    "text2text": text2text_problem,
    "torchvision": torchvision_problem,
}


def build_problem(settings: FusionSettings, cache: Path) -> FusionProblem:
    """Open or train the models, open the data.

    Args:
        settings: the configuration.
        cache: folder for what is made.

    Returns:
        The problem.

    Raises:
        ValueError: for an unknown kind or option, or whatever does not fit, in one sentence.
        FileNotFoundError: when a path does not exist.
    """
    known("kind", settings.kind, [*EMBEDDED, *SOURCES])
    if settings.kind in SOURCES:
        if not Path(settings.root).expanduser().is_dir():
            raise FileNotFoundError(f"root: {settings.root}: no such folder")
        return SOURCES[settings.kind](settings, cache)
    build = EMBEDDED[settings.kind]
    defaults = {name: given.default for name, given in inspect.signature(build).parameters.items()}
    for name, value in settings.options.items():
        known(f"option of {settings.kind}", name, defaults.keys() - {"seed", "cache"})
        if isinstance(defaults[name], int) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"options.{name}: expected a whole number from 1 on, found {value!r}")
        if isinstance(defaults[name], float):
            number(name, value, low=0.0)
    return build(seed=settings.seed, cache=cache, **settings.options)
