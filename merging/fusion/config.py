"""The configuration of a fusion: validated, unknown keys refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from merging.checks import folder_name, nearest

Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _names(value: Any) -> Any:
    """Class names as texts: YAML takes what is not in quotes for numbers, and yes and no for truth values."""
    if value is None or value == "folders":
        return value
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list of names, found {value!r}")
    for name in value:
        if isinstance(name, bool):
            raise ValueError("a name is a truth value to YAML (yes, no, on, off, true, false): put it in quotes")
        if not isinstance(name, str | int | float):
            raise ValueError(f"expected names, found {name!r}")
    twice = [str(name) for place, name in enumerate(value) if name in value[:place]]
    if twice:
        raise ValueError(f"'{twice[0]}' is given twice")
    return tuple(str(name) for name in value)


def _table_head(value: str) -> str:
    if not value.strip() or re.search(r"[|\n]", value):
        raise ValueError(f"expected a name in one line without '|', found {value!r}")
    return value


class Section(BaseModel):
    """A part of the configuration: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_switches(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic takes true and false for 1 and 0."""
        annotation = cls.model_fields[info.field_name].annotation
        kinds = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise PydanticCustomError("no_number", "expected a number")
        return value


class DataSettings(Section):
    """One set of samples: a folder of images (one folder per class), or a table of texts.

    Relative paths start at the configuration's ``root``. Formats: ``folder``; ``tsv``, ``csv`` with a header or with
    ``columns``; ``jsonl``.
    """

    path: str
    format: Literal["folder", "tsv", "csv", "jsonl"] = "folder"
    columns: tuple[str, ...] | None = Field(None, description="names of the columns of a table without a header")
    text: str = "text"
    text_pair: str | None = None
    label: str | None = "label"
    limit: Count | None = Field(None, description="at most so many samples, chosen by the seed")


class HeadSettings(Section):
    """How a task's head is made.

    CLIP's are zero-shot: the mean text embedding of each class over the templates, in which ``{}`` stands for it.
    Classifiers have the head of their own checkpoint, and text-to-text models need none.
    """

    templates: Annotated[tuple[str, ...], Field(min_length=1)] = ("a photo of a {}.",)


class TaskSettings(Section):
    """One task."""

    name: Annotated[str, AfterValidator(_table_head)]
    model: str = Field(
        description="folder, file, or name on the hub; a LoRA adapter is merged into the pretrained model"
    )
    classes: Annotated[tuple[str, ...] | Literal["folders"], BeforeValidator(_names)] = Field(
        description="as the data name or number them; `folders` of the test set, sorted"
    )
    class_names: Annotated[tuple[str, ...] | None, BeforeValidator(_names)] = Field(
        None,
        description="what zero-shot heads or the checkpoint call the classes, or how answers begin; `_` becomes a "
        "space by default",
    )
    metric: Literal["accuracy", "spearman"] = Field(
        "accuracy", description="spearman: the labels are numbers, and so are the classes, whose mean is the prediction"
    )
    head: HeadSettings = HeadSettings()
    prompt: str = Field("{text}", description="what a text-to-text model is asked: {text} and {text_pair}")
    unlabelled: DataSettings
    test: DataSettings

    @model_validator(mode="after")
    def _prompt_fits(self) -> TaskSettings:
        if "{text}" not in self.prompt:
            raise ValueError("the prompt has no {text}")
        if "{text_pair}" in self.prompt and not (self.unlabelled.text_pair and self.test.text_pair):
            raise ValueError(
                "the prompt has {text_pair}, but unlabelled and test do not both name its column text_pair"
            )
        return self


class TrainedMethod(Section):
    """What the methods that learn without labels share."""

    scaling_factor: float = 0.3
    batch: Count = 16
    mode: Literal["together", "per_task"] = "together"
    evaluate_every: Steps = Field(0, description="steps between test accuracies for the curves; 0 for none")


class AdaMergingSettings(TrainedMethod):
    """AdaMerging."""

    steps: Steps = 1000
    learning_rate: Positive = 1e-3


class ConcreteSettings(TrainedMethod):
    """A Concrete mask."""

    steps: Steps = 2000
    learning_rate: Positive = 1e-3
    temperature: Positive = 0.5
    initial_logits: float = 0.0
    final_mask: Literal["concrete", "binary", "mean"] = "concrete"


class ConcreteAdaMergingSettings(ConcreteSettings):
    """A Concrete mask through AdaMerging."""

    inner_learning_rate: Positive = 1.0
    second_order: bool = False
    coefficient_steps: Steps = 1000
    coefficient_learning_rate: Positive = 1e-3


class ScaledSettings(Section):
    """Task arithmetic and its kin: the best of several scaling factors counts."""

    scaling_factors: Annotated[tuple[float, ...], Field(min_length=1)] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)


class TiesSettings(ScaledSettings):
    """TIES."""

    density: Share = 0.2
    scaling_factors: Annotated[tuple[float, ...], Field(min_length=1)] = (0.3, 0.5, 0.7, 1.0, 1.3)


class DareSettings(ScaledSettings):
    """DARE, then task arithmetic."""

    drop_rate: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    scaling_factors: Annotated[tuple[float, ...], Field(min_length=1)] = (0.3,)


class NoSettings(Section):
    """A method without options."""


class MethodSettings(Section):
    """Options of every method; ``null`` leaves one out."""

    individual: NoSettings | None = NoSettings()
    pretrained: NoSettings | None = NoSettings()
    averaging: NoSettings | None = NoSettings()
    task_arithmetic: ScaledSettings | None = ScaledSettings()
    ties: TiesSettings | None = TiesSettings()
    dare: DareSettings | None = DareSettings()
    adamerging_task_wise: AdaMergingSettings | None = AdaMergingSettings()
    adamerging_layer_wise: AdaMergingSettings | None = AdaMergingSettings()
    concrete_task_arithmetic: ConcreteSettings | None = ConcreteSettings()
    concrete_adamerging_task_wise: ConcreteAdaMergingSettings | None = ConcreteAdaMergingSettings()
    concrete_adamerging_layer_wise: ConcreteAdaMergingSettings | None = ConcreteAdaMergingSettings()

    @model_validator(mode="after")
    def _some(self) -> MethodSettings:
        if all(options is None for _, options in self):
            raise ValueError("every method is null; expected at least one")
        return self


class FusionSettings(Section):
    """A fusion.

    ``kind`` names where models and heads come from (:data:`merging.fusion.sources.SOURCES`); the embedded kinds bring
    their own tasks, and ``options`` goes to them.
    """

    name: Annotated[str, AfterValidator(folder_name)]
    kind: str
    pretrained: str | None = None
    root: str = "."
    tasks: tuple[TaskSettings, ...] = ()
    options: dict[str, Any] = {}
    vectors: Literal["float32", "bfloat16", "disk"] = "float32"
    seed: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0, description="CPU threads; 0 takes all cores")] = 0
    image_size: Count | None = Field(None, description="side in pixels, where the model's own files do not say")
    length: Count = Field(128, description="tokens per text, at most")
    methods: MethodSettings = MethodSettings()

    @model_validator(mode="after")
    def _complete(self) -> FusionSettings:
        embedded = self.kind.startswith("embedded-")
        if embedded and (self.tasks or self.pretrained):
            raise ValueError(
                f"kind '{self.kind}' brings its own tasks and pretrained model: leave out tasks, pretrained"
            )
        if not embedded and (not self.tasks or not self.pretrained):
            raise ValueError(f"kind '{self.kind}' needs a pretrained model and at least one task")
        return self

    def path(self, text: str) -> Path:
        """A path of the configuration, from its root."""
        return Path(self.root).expanduser() / Path(text).expanduser()


def parse_fusion(values: Mapping[str, Any], where: str) -> FusionSettings:
    """Validate a configuration.

    Args:
        values: what the file holds, overrides included.
        where: what messages call it.

    Returns:
        The settings.

    Raises:
        ValueError: one sentence: the key, what stands there, what was expected; an unknown key with the nearest known.
    """
    try:
        return FusionSettings.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError(f"{where}: {_sentence(error)}") from None


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    place = ".".join(path)
    if first["type"] == "extra_forbidden":
        model: Any = FusionSettings
        for part in path[:-1]:
            model = _inner(model, part)
        return f"unknown key '{place}'{nearest(path[-1], list(getattr(model, 'model_fields', {})))}"
    message = first["msg"].removeprefix("Value error, ")
    found = "" if first["type"] in ("missing", "value_error") else f", found {first['input']!r}"
    return f"{place + ': ' if place else ''}{message[0].lower()}{message[1:]}{found}"


def _inner(model: Any, part: str) -> Any:
    """The model of one field, through unions and tuples."""
    if part.isdigit() or model is None:
        return model
    field = getattr(model, "model_fields", {}).get(part)
    candidates = [field.annotation] if field else []
    while candidates:
        candidate = candidates.pop()
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
        candidates.extend(getattr(candidate, "__args__", ()))
    return None
