"""The configuration of a run: one validated model, unknown keys refused with the nearest known name.

A run is resolved in layers, the later one winning: the defaults below, the method's own settings, the series' ``train``
section, the configuration file, and the ``--set`` options. The resolved configuration is saved with every result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from duet.documents import parse_yaml
from duet.errors import InputError, nearest

# As Ultralytics writes them: cpu, mps, 0, cuda:1, and 0,1 for one process on each.
DEVICES = r"^(cpu|mps|\d+(,\d+)*|cuda(:\d+)?)$"


def _device_text(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return ",".join(str(item) for item in value)
    return str(value) if type(value) is int else value


SMALLEST_BATCH = 4
"""Images per step below which `min_steps` does not go."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]


def refuse_switches(annotation: object, value: Any) -> Any:
    """A setting's value, unless true or false stands where its type wants a number; pydantic takes them for 1 and 0.

    Args:
        annotation: type of the setting, as pydantic keeps it.
        value: as it was read; what lists and mappings hold counts too.

    Raises:
        PydanticCustomError: for a truth value in place of a number.
    """
    kinds = _kinds(annotation)
    wants_numbers = (int in kinds or float in kinds) and bool not in kinds and Any not in kinds
    if wants_numbers and any(isinstance(item, bool) for item in _items(value)):
        raise PydanticCustomError("no_number", "expected a number")
    return value


def _kinds(annotation: object) -> list[object]:
    inner = get_args(annotation)
    return [kind for item in inner for kind in _kinds(item)] if inner else [annotation]


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        value = list(value.values())
    return [item for inner in value for item in _items(inner)] if isinstance(value, (list, tuple)) else [value]


class Section(BaseModel):
    """A part of the configuration: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # Settings that came later, with what was done before there was a choice.
    AS_BEFORE: ClassVar[Mapping[str, Any]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_switches(cls, value: Any, info: ValidationInfo) -> Any:
        return refuse_switches(cls.model_fields[info.field_name].annotation, value)

    def keyed(self, exclude: Set[str] = frozenset()) -> dict[str, Any]:
        """The settings as a part of a key: without those that are as before, so that earlier runs keep their keys."""
        values = self.model_dump(mode="json", exclude=set(exclude))
        return {key: value for key, value in values.items() if (key, value) not in self.AS_BEFORE.items()}


class TrainSettings(Section):
    """How every stage trains. The names are Ultralytics' own where it has one."""

    AS_BEFORE = {"processes": 1}

    epochs: Annotated[int, Field(ge=1, description="epochs per stage")] = 100
    batch: Annotated[int, Field(ge=1, description="images per step")] = 16
    image_size: Annotated[int, Field(ge=32, multiple_of=32, description="side of the square input, pixels")] = 640
    optimizer: Literal["AdamW", "Adam", "SGD"] = "AdamW"
    lr0: Annotated[float, Field(gt=0, le=1, description="initial learning rate")] = 1e-3
    lrf: Annotated[float, Field(gt=0, le=1, description="final learning rate as a fraction of lr0")] = 0.01
    cos_lr: Annotated[bool, Field(description="cosine instead of linear decay")] = False
    momentum: Share = 0.9
    weight_decay: NotNegative = 5e-4
    warmup_epochs: NotNegative = 1.0
    mosaic: Share = 0.0
    close_mosaic: Annotated[int, Field(ge=0)] = 0
    fliplr: Annotated[Share, Field(description="probability of mirroring an image")] = 0.5
    translate: Share = 0.1
    scale: Share = 0.5
    hsv_h: Share = 0.015
    hsv_s: Share = 0.7
    hsv_v: Share = 0.4
    device: Annotated[str, BeforeValidator(_device_text), Field(pattern=DEVICES)] = "cpu"
    processes: Annotated[
        int, Field(ge=1, description="processes that share each batch on CPUs; a list of devices has one on each")
    ] = 1
    workers: Annotated[int, Field(ge=0)] = 4
    threads: Annotated[int, Field(ge=0, description="CPU threads; 0 takes all cores")] = 0
    amp: bool = True

    @property
    def process_count(self) -> int:
        """Processes that train a stage together."""
        devices = self.device.split(",")
        return len(devices) if len(devices) > 1 else self.processes

    def steps(self, images: int, epochs: int | None = None) -> int:
        """Steps over so many images; ``epochs`` in place of the settings' own."""
        return (self.epochs if epochs is None else epochs) * math.ceil(images / self.batch)

    def in_one_process(self) -> TrainSettings:
        """The same settings for one process, on the first device of a list."""
        return self.model_copy(update={"processes": 1, "device": self.device.split(",")[0]})


class DistillationSettings(Section):
    """Distillation from the merged model of the previous task."""

    kind: Literal["paper", "weighted", "lwf", "erd"] = "weighted"
    weight: Positive = 1.0


class DirectionalSettings(Section):
    """The directional-consistency loss (DuET, section 4.3)."""

    weight: Positive = 0.01
    granularity: Literal["scalar", "tensor"] = "scalar"


class EwcSettings(Section):
    """Elastic weight consolidation over the class-free parameters; the Fisher information has mean 1."""

    weight: Positive = 1.0


class PseudoLabelSettings(Section):
    """Confident detections of old classes on the new images become their labels."""

    confidence: Annotated[Share, Field(description="smallest score of a detection that becomes a label")] = 0.5
    overlap: Annotated[
        Share,
        Field(
            description="largest share of the smaller box that it may have in common with a box of the new classes' "
            "ground truth"
        ),
    ] = 0.3


class ExemplarSettings(Section):
    """Images of earlier tasks that are kept and trained on again: breaks the exemplar-free rule."""

    images_per_class: Annotated[int, Field(ge=1)] = 10


class MergeSettings(Section):
    """How the shared parameters of the previous and the current model become one."""

    name: str = "duet"
    options: dict[str, Any] = Field(default_factory=dict)


class ReplaySettings(Section):
    """Domain-statistics replay: part of each batch is re-coloured to a past domain (six numbers kept, no image)."""

    share: Annotated[float, Field(gt=0, le=1, description="share of the batch that is re-coloured")] = 0.5


class AppearanceSettings(Section):
    """Pictures of every stage, the first too, in tones, colours and textures of no domain (domain randomisation)."""

    share: Annotated[float, Field(gt=0, le=1, description="share of the batch whose appearance is varied")] = 0.5


class MethodSettings(Section):
    """What a stage trains with, how it merges, and what it does to the head, from the second task on."""

    AS_BEFORE = {
        "new_rows": "random",
        "row_lr_factor": 1.0,
        "unseen_lr_factor": None,
        "tower_lr_factor": 1.0,
        "unseen_tower_lr_factor": None,
        "layer_decay": 1.0,
        "appearance": None,
        "teacher_statistics": 0.0,
        "min_steps": None,
    }

    name: str
    joint: Annotated[bool, Field(description="one training on all domains with all labels")] = False
    start: Annotated[
        Literal["previous", "pretrained"],
        Field(description="`pretrained`: every task is trained anew from the pretrained weights, on its classes only"),
    ] = "previous"
    committee: Annotated[bool, Field(description="the models of all stages see together; with `start: pretrained`")] = (
        False
    )
    head: Literal["rows", "parallel"] = "rows"
    towers: Annotated[
        Literal["old", "merge", "new", "shared"],
        Field(
            description="`rows`: whose class towers and box branch (RT-DETR: decoder) the merged head has; `shared`: "
            "they belong to the shared parameters, merged and held like these"
        ),
    ] = "new"
    old_rows: Annotated[
        Literal["restore", "trained"],
        Field(description="`rows`: old class rows of the previous model, or as training left them"),
    ] = "restore"
    negatives: Annotated[
        Literal["all", "new"],
        Field(
            description="`all`: old classes are background in new images; `new`: the detector's own class loss "
            "is taken over the new classes only"
        ),
    ] = "all"
    new_rows: Annotated[
        Literal["random", "mean"],
        Field(
            description="`rows`: new class rows start at random, or as the mean of the old ones: an object of any kind"
        ),
    ] = "random"
    merge: MergeSettings | None = None
    batch_norm: Annotated[
        Literal["merge", "freeze", "mixture", "current", "recalibrate"],
        Field(
            description="BatchNorm statistics of a later stage: `merge` by the merger's coefficients; `freeze` those "
            "of the previous model; `mixture` those of all domains until now, estimated before training and fixed; "
            "`current` as training left them; `recalibrate` estimated on the merged model"
        ),
    ] = "current"
    freeze_shared: Annotated[bool, Field(description="backbone and neck stand still after the first task")] = False
    freeze_towers: Annotated[
        bool, Field(description="class towers and box branch too; only new class rows are learned")
    ] = False
    shared_lr_factor: Annotated[float, Field(gt=0, le=1, description="learning rate of backbone and neck / lr0")] = 1.0
    unseen_lr_factor: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            description="that rate where the previous model sees no old object in the new pictures, so that "
            "distillation cannot keep the old classes; the full rate from one per picture on; null looks at none",
        ),
    ] = None
    tower_lr_factor: Annotated[
        float, Field(gt=0, le=1, description="learning rate of the head but for its class rows / lr0")
    ] = 1.0
    unseen_tower_lr_factor: Annotated[
        float | None,
        Field(gt=0, le=1, description="that rate where the previous model sees no old object, as `unseen_lr_factor`"),
    ] = None
    layer_decay: Annotated[
        float,
        Field(gt=0, le=1, description="learning rate of the first layers of backbone and neck / that of their last"),
    ] = 1.0
    row_lr_factor: Annotated[float, Field(gt=0, le=100, description="`rows`: learning rate of class rows / lr0")] = 1.0
    weight_decay: Annotated[float | None, Field(ge=0, description="from the second task on; null keeps train's")] = None
    min_steps: Annotated[
        int | None,
        Field(
            ge=1,
            description="steps that a later stage's epochs have at least: where its pictures are few, batches are "
            f"smaller, down to {SMALLEST_BATCH}, and the rate of backbone and neck is as much lower; null keeps "
            "train.batch",
        ),
    ] = None
    distillation: DistillationSettings | None = None
    teacher_statistics: Annotated[
        float, Field(ge=0, le=1, description="share of the new domain in the teacher's BatchNorm statistics")
    ] = 0.0
    directional_consistency: DirectionalSettings | None = None
    replay: ReplaySettings | None = None
    appearance: AppearanceSettings | None = None
    ewc: EwcSettings | None = None
    pseudo_labels: PseudoLabelSettings | None = None
    exemplars: ExemplarSettings | None = None
    calibration_epochs: Annotated[int, Field(ge=0, description="head-only epochs on the merged model")] = 0

    @property
    def idle(self) -> dict[str, str]:
        """Options that do nothing, each with the one that makes it so."""
        if not self.goes_on:
            used = ("name", "joint", "start", "committee", "appearance")
            reason = "joint: true" if self.joint else "start: pretrained"
            return {key: reason for key in type(self).model_fields if key not in used}
        idle = dict.fromkeys(("new_rows", "row_lr_factor"), "head: parallel") if self.head == "parallel" else {}
        if self.freeze_shared:
            rates = ("shared_lr_factor", "unseen_lr_factor", "layer_decay")
            losses = () if self.towers == "shared" else ("directional_consistency",)
            idle |= dict.fromkeys((*rates, *losses), "freeze_shared: true")
        if self.freeze_towers:
            idle |= dict.fromkeys(("tower_lr_factor", "unseen_tower_lr_factor"), "freeze_towers: true")
        return idle

    @property
    def goes_on(self) -> bool:
        """Whether a stage goes on from the model of the one before."""
        return not self.joint and self.start == "previous"

    @property
    def holds_rows(self) -> bool:
        """Whether the old class rows stand still while a later stage trains."""
        return self.head == "rows" and self.old_rows == "restore" and self.negatives == "new"

    @property
    def fixes_statistics(self) -> bool:
        """Whether BatchNorm statistics stand still while a later stage trains."""
        return self.batch_norm in ("freeze", "mixture")

    def of_training(self) -> dict[str, Any]:
        """What decides the weights that a later stage's training leaves: not the merger, nor what follows it.

        Methods that agree in it, such as one method with several mergers, train alike from the same model.
        """
        return {
            **self.keyed(exclude={"name", "merge", "calibration_epochs", "old_rows"}),
            "towers": self.towers == "shared",
            "batch_norm": self.fixes_statistics,
            "holds_rows": self.holds_rows,
        }


class EvaluationSettings(Section):
    """How a detector is scored."""

    reference: Literal["joint", "individual", "none"] = "joint"
    confidence: Share = 0.001
    iou: Annotated[float, Field(gt=0, le=1, description="non-maximum suppression")] = 0.7
    max_detections: Annotated[int, Field(ge=1)] = 300
    multi_label: Annotated[
        bool,
        Field(
            description="YOLO: a box counts for every class above the confidence, as in Ultralytics' own validation; "
            "false: for its best class alone, as in a prediction (RT-DETR always the one, FCOS always the other)"
        ),
    ] = True
    drop_images_without_class: Annotated[
        bool, Field(description="score a slice only on test images that have one of its classes; COCO takes all")
    ] = False
    evaluator: Literal["faster-coco-eval", "pycocotools"] = "faster-coco-eval"
    bootstrap: Annotated[
        int,
        Field(ge=0, le=100_000, description="resamples of the test images for intervals; 0 leaves them out"),
    ] = 1000


class RunConfig(Section):
    """Everything that decides a run's numbers; ``root`` and ``loggers`` do not."""

    series: str = "demo"
    root: Annotated[str | None, Field(description="folder that the series' relative paths start from")] = None
    detector: str = "yolo11n"
    method: MethodSettings
    seed: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    train: TrainSettings = TrainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    loggers: Annotated[
        tuple[Literal["tensorboard", "mlflow", "wandb"], ...],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        AfterValidator(lambda names: tuple(dict.fromkeys(names))),
        Field(description="experiment loggers that get losses, learning rates, scores and indices"),
    ] = ()

    def later_train(self, images: int) -> TrainSettings:
        """How a later stage with so many images trains: in smaller batches where `method.min_steps` asks for them.

        Where several processes share a batch, each gets as many of it, and two at least.
        """
        train, wanted = self.train, self.method.min_steps
        if wanted is None or train.steps(images) >= wanted:
            return train
        share = train.process_count
        smallest = math.ceil(max(SMALLEST_BATCH / share, 2)) * share
        batch = max(images * train.epochs // wanted // share * share, smallest)
        return train.model_copy(update={"batch": min(train.batch, batch)})

    def deciding(self) -> dict[str, Any]:
        """What decides the run's numbers, as plain values: not where data lie, what logs them, or how sure they are."""
        return {**self.settings(), "method": self.method.keyed(), "train": self.train.keyed()}

    def settings(self) -> dict[str, Any]:
        """The same with every setting written out, for results and loggers."""
        return self.model_dump(mode="json", exclude={"root": True, "loggers": True, "evaluation": {"bootstrap"}})


def validate(model: type[Section], values: Mapping[str, Any], source: str) -> Any:
    """Build a section from plain values.

    Args:
        model: the section's class.
        values: nested plain values.
        source: where they come from, for the message.

    Raises:
        InputError: one sentence with the key, what stands there, and what was expected.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise InputError(f"{source}: {_sentence(model, error)}") from error


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested values by dotted keys, as ``--set`` names them."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, Mapping) and value else {f"{before}{key}": value}
    return found


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """Turn ``train.epochs=8`` options into nested values; the value is read as YAML.

    Raises:
        InputError: for an option without ``=`` or with an empty key.
    """
    nested: dict[str, Any] = {}
    for item in assignments:
        key, equals, text = item.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise InputError(f"--set {item}: expected KEY=VALUE such as train.epochs=8")
        try:
            value = parse_yaml(text, f"--set {item}")
        except InputError as error:
            raise InputError(f"--set {item}: the value is not YAML") from error
        # YAML 1.1 reads 1e-3 as a string because it has no dot.
        if isinstance(value, str) and value == text.strip():  # not where it was quoted
            value = _number(value)
        target = nested
        for part in parts[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise InputError(f"--set {item}: '{part}' was given a value before")
        target[parts[-1]] = value
    return nested


def overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``top`` laid over it, section by section; neither is changed."""
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        merged[key] = overlay(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _sentence(model: type[BaseModel], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        section = _section_at(model, location[:-1])
        return f"unknown key '{key}'" + nearest(location[-1], section.model_fields if section else [])
    if first["type"] == "missing":
        return f"key '{key}' is missing"
    return f"key '{key}' is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _section_at(model: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    current: Any = model
    for part in location:
        if not (isinstance(current, type) and issubclass(current, BaseModel)):
            return None
        field = current.model_fields.get(part)
        if field is None:
            continue
        current = _model_in(field.annotation)
    return current if isinstance(current, type) and issubclass(current, BaseModel) else None


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
