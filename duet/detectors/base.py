"""The contract between the learner and a detector.

The learner never sees a vendor's class: it splits a detector's state into shared and task-specific tensors, grows the
head by class names, trains a stage, asks for predictions, and saves and loads. ``docs/adding-a-detector.md`` says how
another family joins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from torch import Tensor

from duet.config import EvaluationSettings, MethodSettings, TrainSettings
from duet.errors import InputError

Key = TypeVar("Key")
ExportFormat = Literal["onnx", "openvino", "torchscript", "engine"]
BATCH = 32


@dataclass(frozen=True)
class StateSplit:
    """Which keys of a detector's state belong to what; every key is in exactly one of shared and task.

    Args:
        shared: keys of θ_s (backbone and neck; on request the head's towers too), parameters and buffers, in the order
            of the layers.
        task: keys of θ_τ (the head).
        parameters: the keys, shared or task, that are trainable parameters.
    """

    shared: tuple[str, ...]
    task: tuple[str, ...]
    parameters: frozenset[str]

    @property
    def shared_parameters(self) -> tuple[str, ...]:
        """The trainable parameters of θ_s, without buffers: what directional consistency runs over."""
        return tuple(key for key in self.shared if key in self.parameters)


@dataclass(frozen=True)
class Detections:
    """Detections in one image, best first.

    Args:
        boxes_xyxy: (N, 4) float32, pixels of the original image.
        scores: (N,) float32, 0 to 1.
        labels: N class names.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]

    def one_per_box(self) -> Detections:
        """Of detections with the very same box the one with the highest score: a box and its best class."""
        _, first = np.unique(self.boxes_xyxy.reshape(-1, 4), axis=0, return_index=True)  # the first is the best
        kept = np.sort(first)
        return Detections(self.boxes_xyxy[kept], self.scores[kept], tuple(self.labels[place] for place in kept))


@dataclass(frozen=True)
class DomainStatistics:
    """What is kept of a past domain for replay: six numbers.

    Args:
        mean: mean of red, green and blue over the domain's training pixels, 0 to 1.
        std: standard deviation of the same.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class DirectionalTarget:
    """The constants of the directional-consistency loss, by parameter name.

    Args:
        previous: θ_(t−1) of the shared parameters.
        direction: v = θ_(t−1) − θ_(t−2) of the shared parameters; θ_0 stands for θ_(t−2) at t = 2.
    """

    previous: Mapping[str, Tensor]
    direction: Mapping[str, Tensor]


@dataclass(frozen=True)
class Consolidation:
    """The constants of elastic weight consolidation, by parameter name.

    Args:
        previous: θ* of the parameters that are held.
        fisher: their Fisher information, mean 1.
    """

    previous: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]


@dataclass(frozen=True)
class StageProgress:
    """One step of a stage, for progress bars.

    Args:
        step: steps done, from 1.
        steps: steps of the whole stage.
        epoch: current epoch, from 1.
        epochs: epochs of the stage.
        losses: running means of the current epoch by name.
        learning_rates: of this step by parameter group, named ``lr/pg0`` and so on.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    losses: Mapping[str, float]
    learning_rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StageRequest:
    """Everything a detector needs to train one stage.

    Args:
        data: YAML file of the training set in YOLO layout; its class names are the detector's, in its order.
        folder: where the trainer may write its files.
        seed: seed of this stage.
        train: training settings.
        method: the method; its losses and freezing apply only when ``teacher`` is given.
        epochs: epochs of this stage.
        teacher: the frozen model of the previous task; None in the first stage.
        directional: constants of the directional-consistency loss, when it is switched on.
        consolidation: constants of elastic weight consolidation, when it is switched on.
        past_domains: statistics of earlier domains, when replay is switched on.
        own_domain: statistics of the domain in training, when replay is switched on.
        head_only: train the head on a fixed backbone (calibration after a merge).
        progress: called after every step.
    """

    data: Path
    folder: Path
    seed: int
    train: TrainSettings
    method: MethodSettings
    epochs: int
    teacher: Detector | None = None
    directional: DirectionalTarget | None = None
    consolidation: Consolidation | None = None
    past_domains: tuple[DomainStatistics, ...] = ()
    own_domain: DomainStatistics | None = None
    head_only: bool = False
    progress: Callable[[StageProgress], None] | None = None


@dataclass(frozen=True)
class StageOutcome:
    """What a stage leaves beside the trained weights.

    Args:
        losses: one mapping per epoch, loss name to mean value.
        seconds: duration of the training loop.
    """

    losses: tuple[Mapping[str, float], ...]
    seconds: float


@dataclass(frozen=True)
class Description:
    """What is needed beside the tensors to build a detector again; plain JSON values only.

    Args:
        family: key in the table of families.
        classes: class names in the order of the outputs.
        architecture: the family's own description.
    """

    family: str
    classes: tuple[str, ...]
    architecture: Mapping[str, Any] = field(default_factory=dict)


class Detector(ABC):
    """A detector that can learn task after task.

    ``shares_training`` says whether several processes can train it together, ``heads`` which head policies it has.
    """

    shares_training: ClassVar[bool] = False
    heads: ClassVar[tuple[str, ...]] = ("rows",)

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""

    @abstractmethod
    def split(self, shared_towers: bool = False) -> StateSplit:
        """Which keys of ``state()`` are shared and which belong to the head.

        Args:
            shared_towers: count the head's parts that know no class to θ_s (``method.towers: shared``).
        """

    @property
    @abstractmethod
    def image_size(self) -> int | None:
        """Side of the square input in pixels, or None before the first training."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """The model's tensors by name, detached copies on the CPU."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replace all tensors.

        Raises:
            ValueError: when a key is missing, unknown, or of another shape.
        """

    @abstractmethod
    def clone(self) -> Detector:
        """An independent copy that shares no tensor."""

    @abstractmethod
    def grown(self, new_classes: Sequence[str], seed: int, head: str, new_rows: str = "random") -> Detector:
        """A copy whose head has outputs for more classes; outputs of the old ones are unchanged to the bit.

        Args:
            new_classes: names that the detector does not have yet.
            seed: of the new outputs' initial values.
            head: ``rows`` or ``parallel``.
            new_rows: ``random``, or ``mean``: of the old classes' rows, as what any object looks like.
        """

    @abstractmethod
    def with_classes(self, classes: Sequence[str], seed: int) -> Detector:
        """A copy with a fresh head for these classes only, towers and all else kept: the start of a series."""

    @abstractmethod
    def merged_head(self, previous: Mapping[str, Tensor], method: MethodSettings) -> dict[str, Tensor]:
        """The head's tensors after a stage by the method's head policy.

        Args:
            previous: state of the model of the previous task, with its fewer classes.
            method: ``head``, ``towers`` and ``old_rows`` are read.
        """

    @abstractmethod
    def train_stage(self, request: StageRequest) -> StageOutcome:
        """Train in place by the family's own trainer and take over the averaged (EMA) weights where it has them.

        Raises:
            RuntimeError: when a loss is not finite, or one that is switched on stays exactly zero.
        """

    @abstractmethod
    def squared_gradients(self, request: StageRequest) -> dict[str, Tensor]:
        """Diagonal empirical Fisher information: the squared gradient of the detector's own loss, mean over images.

        Every training image once, alone, without augmentation, with the running statistics of BatchNorm. The weights
        do not change.

        Returns:
            Name → values ≥ 0 of the parameter's shape, for every trainable parameter.
        """

    @abstractmethod
    def predict(
        self, images: Sequence[Path], image_size: int, settings: EvaluationSettings
    ) -> Iterator[tuple[Path, Detections]]:
        """Detections for image files on square inputs, for scoring: each image once, in any order."""

    @abstractmethod
    def predict_pictures(
        self,
        pictures: Iterable[tuple[Key, np.ndarray]],
        image_size: int,
        settings: EvaluationSettings,
        batch: int = BATCH,
        square: bool = False,
    ) -> Iterator[tuple[Key, Detections]]:
        """Detections for pictures in memory, as the deployed checkpoint gives them in its own package.

        Args:
            pictures: (key, picture); the key comes back with the detections. A picture is (H, W, 3) uint8, blue green
                red.
            image_size: longer side of the input in pixels.
            settings: thresholds.
            batch: pictures of one shape that run together.
            square: pad to a square, as exported detectors of fixed size do.

        Returns:
            Each picture once; pictures of one shape in their order.
        """

    def export(self, form: ExportFormat, folder: Path, image_size: int, dynamic: bool) -> Path:
        """Write the detector in an exchange format, with its class names.

        Args:
            form: the format.
            folder: an empty folder to write to.
            image_size: side of the input in pixels.
            dynamic: leave batch, height and width open where the format can.

        Returns:
            The file or folder inside ``folder``.

        Raises:
            InputError: when the family, the format or a missing package does not allow it.
        """
        raise InputError(f"detectors of the family '{self.describe().family}' cannot be exported")

    def predict_exported(
        self,
        exported: Path,
        pictures: Iterable[tuple[Key, np.ndarray]],
        image_size: int,
        settings: EvaluationSettings,
        square: bool = False,
    ) -> Iterator[tuple[Key, Detections]]:
        """Detections of what :meth:`export` wrote, in the format's own runtime, as :meth:`predict_pictures`."""
        raise InputError(f"detectors of the family '{self.describe().family}' cannot be exported")

    @abstractmethod
    def estimate_batch_norm(self, images: Iterable[Path], image_size: int) -> None:
        """Re-estimate the BatchNorm statistics on the given images (policy ``recalibrate``)."""

    @abstractmethod
    def describe(self) -> Description:
        """What is needed beside ``state()`` to build the detector again."""

    @abstractmethod
    def save_checkpoint(self, path: Path) -> None:
        """Write the family's own deployable checkpoint."""


def refuse_head(detector: Detector, head: str) -> None:
    """Refuse a head policy that the detector's family does not have.

    Raises:
        InputError: naming those that it has.
    """
    if head not in detector.heads:
        have = ", ".join(detector.heads)
        raise InputError(f"method.head: {head} is not available for this detector; it has {have}")


def refuse_several(detector: Detector, train: TrainSettings) -> None:
    """Refuse several processes for a detector that trains in one.

    Raises:
        InputError: naming the family.
    """
    if train.process_count > 1 and not detector.shares_training:
        raise InputError(
            f"detectors of the family '{detector.describe().family}' train in one process, not in {train.process_count}"
        )
