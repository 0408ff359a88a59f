"""What detectors that are one torch module share behind the detector contract."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import Self

from duet.config import MethodSettings
from duet.detectors.base import Detector, StageRequest, StateSplit, refuse_head
from duet.detectors.stage_plan import StagePlan, stage_plan
from duet.errors import first_line


class ModuleDetector(Detector):
    """A network whose head's class rows grow (head policy ``rows``); the head is a submodule with a name of its own.

    θ_s is everything but the head, θ_τ the head: DuET, section 4.1.

    Args:
        model: the network, in float32.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.float().requires_grad_(True)  # checkpoints are stored without
        self._image_size: int | None = None

    @property
    @abstractmethod
    def head_prefix(self) -> str:
        """What the names of the head's tensors start with."""

    @property
    @abstractmethod
    def body_prefixes(self) -> tuple[str, ...]:
        """What the names of the backbone's and neck's tensors start with."""

    @property
    def image_size(self) -> int | None:
        """Side of the training input in pixels."""
        return self._image_size

    def split(self, shared_towers: bool = False) -> StateSplit:
        """Backbone and neck are shared, the head is task-specific, or only its class rows."""
        keys = tuple(self.model.state_dict())
        rows = frozenset(self._rows())
        task = tuple(key for key in keys if key.startswith(self.head_prefix) and (key in rows or not shared_towers))
        own = frozenset(task)
        shared = tuple(key for key in keys if key not in own)
        return StateSplit(shared, task, frozenset(name for name, _ in self.model.named_parameters()))

    def state(self) -> dict[str, Tensor]:
        """Detached copies of all tensors on the CPU."""
        return {key: value.detach().cpu().clone() for key, value in self.model.state_dict().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Replace all tensors."""
        try:
            self.model.load_state_dict(dict(state), strict=True)
        except RuntimeError as error:
            raise ValueError(f"state does not fit the detector: {first_line(error)}") from error

    def clone(self) -> Self:
        """An independent copy."""
        return self._wrapping(copy.deepcopy(self.model))

    def with_classes(self, classes: Sequence[str], seed: int) -> Self:
        """Fresh rows for these classes on the towers as they are."""
        return self._with_rows(classes, seed)

    def grown(self, new_classes: Sequence[str], seed: int, head: str, new_rows: str = "random") -> Self:
        """Append class rows.

        Raises:
            ValueError: when a class is there already.
            InputError: for a head policy that the family does not have.
        """
        self._refuse_known(new_classes)
        refuse_head(self, head)
        known = len(self.classes)
        detector = self._with_rows((*self.classes, *new_classes), seed, keep=known)
        if new_rows == "mean":
            with torch.no_grad():
                for name in self._score_rows():
                    rows = detector.model.get_parameter(name)
                    rows[known:] = rows[:known].mean(0)
        return detector

    def merged_head(self, previous: Mapping[str, Tensor], method: MethodSettings) -> dict[str, Tensor]:
        """Old class rows and towers by the method's policies, new class rows from training."""
        current, rows = self.state(), frozenset(self._rows())
        merged: dict[str, Tensor] = {}
        for key in self.split(method.towers == "shared").task:
            value = current[key]
            if key in rows:
                if method.old_rows == "restore":
                    value = torch.cat([previous[key], value[len(previous[key]) :]])
            elif method.towers == "old":
                value = previous[key].clone()
            elif method.towers == "merge" and value.is_floating_point():
                value = torch.lerp(previous[key], value, 0.5)
            merged[key] = value
        return merged

    @abstractmethod
    def _rows(self) -> tuple[str, ...]:
        """Names of the head's tensors with one row per class."""

    def _score_rows(self) -> tuple[str, ...]:
        """Those of them that give scores."""
        return self._rows()

    @abstractmethod
    def _with_rows(self, classes: Sequence[str], seed: int, keep: int = 0) -> Self:
        """A copy with rows for these classes, of which the first ``keep`` are the old ones."""

    def _wrapping(self, model: nn.Module) -> Self:
        detector = type(self)(model)
        detector._image_size = self._image_size
        return detector

    def _refuse_known(self, new_classes: Sequence[str]) -> None:
        known = [name for name in new_classes if name in self.classes]
        if known:
            raise ValueError(f"the detector already has class '{known[0]}'")

    def _plan(self, request: StageRequest) -> StagePlan:
        teacher = copy.deepcopy(request.teacher.model) if request.teacher is not None else None
        frozen = self._frozen(request.method, request.head_only)
        return stage_plan(request, teacher, self._rows(), frozen, self.body_prefixes)

    def _frozen(self, method: MethodSettings, head_only: bool) -> tuple[str, ...]:
        frozen = self.body_prefixes if method.freeze_shared or head_only else ()
        return frozen + self._towers() if method.freeze_towers else frozen

    def _towers(self) -> tuple[str, ...]:
        """Prefixes of everything in the head but its class rows."""
        rows = {name.rpartition(".")[0] for name in self._rows()}
        owners = {name.rpartition(".")[0] for name, _ in self.model.named_parameters()}
        return tuple(sorted(f"{name}." for name in owners - rows if name.startswith(self.head_prefix)))
