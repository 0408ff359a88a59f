"""What a stage adds to a detector's own training; the same for every family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from duet.config import DirectionalSettings, DistillationSettings, EwcSettings
from duet.detectors.appearance import vary
from duet.detectors.base import Consolidation, DomainStatistics, StageProgress, StageRequest
from duet.detectors.replay import recolour
from duet.errors import TrainingStopped
from duet.losses.directional import directional_consistency
from duet.losses.ewc import ewc_penalty

DEPTHS = 8
"""Steps of the layer-wise decay of the learning rate."""


@dataclass
class StagePlan:
    """What a stage adds to a plain training; travels with the model into data-parallel workers.

    Args:
        teacher: frozen network of the previous task, or None.
        old_classes: number of classes that the teacher knows.
        distillation: settings, or None.
        directional: settings, or None.
        previous: θ_(t−1) by parameter name.
        direction: v by parameter name.
        ewc: settings, or None.
        consolidation: what elastic weight consolidation holds, or None.
        negatives: ``new`` leaves the old classes out of the detector's own class loss.
        held_rows: parameters whose first ``old_classes`` rows keep their values during the stage.
        frozen: prefixes of parameter names that stand still, BatchNorm statistics included.
        freeze_batch_norm: keep all BatchNorm statistics while the weights train.
        shared_prefixes: prefixes of θ_s, for the learning-rate factor.
        shared_lr_factor: learning rate of θ_s / lr0.
        tower_lr_factor: learning rate of the head but for its class rows / lr0.
        layer_decay: learning rate of the first eighth of θ_s / that of its last, geometric in between.
        rows: names of the parameters with one row per class.
        row_lr_factor: their learning rate / lr0.
        past_domains, own_domain, replay_share: domain-statistics replay.
        appearance_share: share of each batch whose appearance is varied.
        seed: of the replay's choices.
        progress: called after every step.
    """

    teacher: nn.Module | None = None
    old_classes: int = 0
    distillation: DistillationSettings | None = None
    directional: DirectionalSettings | None = None
    previous: Mapping[str, Tensor] = field(default_factory=dict)
    direction: Mapping[str, Tensor] = field(default_factory=dict)
    ewc: EwcSettings | None = None
    consolidation: Consolidation | None = None
    negatives: str = "all"
    held_rows: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    freeze_batch_norm: bool = False
    shared_prefixes: tuple[str, ...] = ()
    shared_lr_factor: float = 1.0
    tower_lr_factor: float = 1.0
    layer_decay: float = 1.0
    rows: tuple[str, ...] = ()
    row_lr_factor: float = 1.0
    past_domains: tuple[DomainStatistics, ...] = ()
    own_domain: DomainStatistics | None = None
    replay_share: float = 0.0
    appearance_share: float = 0.0
    seed: int = 0
    progress: Callable[[StageProgress], None] | None = None

    def learning_rates(self, names: Sequence[str]) -> dict[str, float]:
        """Learning rate / lr0 of each parameter; ``names`` in the order of the layers, as networks list them.

        Layer-wise decay (ULMFiT, section 3.1; BEiT, section 3.1) by eighths of θ_s in place of layers, so that one
        setting means the same for every family.

        Raises:
            RuntimeError: θ_s has a learning rate of its own and no parameter belongs to it.
        """
        factors = dict.fromkeys(names, self.tower_lr_factor)
        shared = [name for name in names if name.startswith(self.shared_prefixes)]
        if not shared and (self.shared_lr_factor, self.layer_decay) != (1.0, 1.0):
            raise RuntimeError(f"shared learning rate: no parameter starts with {self.shared_prefixes}")
        for place, name in enumerate(shared):
            depth = (place * DEPTHS // len(shared)) / (DEPTHS - 1)
            factors[name] = self.shared_lr_factor * self.layer_decay ** (1 - depth)
        return factors | {name: self.row_lr_factor for name in self.rows if name in factors}


def stage_plan(
    request: StageRequest,
    teacher: nn.Module | None,
    rows: tuple[str, ...],
    frozen: tuple[str, ...],
    shared_prefixes: tuple[str, ...],
) -> StagePlan:
    """The plan of a request; in a first stage nothing but the appearance is added.

    Args:
        request: the stage.
        teacher: an independent copy of the teacher's network, or None in the first stage.
        rows: names of the parameters with one row per class.
        frozen: prefixes of what stands still.
        shared_prefixes: prefixes of the backbone and neck.
    """
    method = request.method
    varied = method.appearance.share if method.appearance else 0.0
    if request.teacher is None:
        return StagePlan(appearance_share=varied, seed=request.seed, progress=request.progress)
    return StagePlan(
        teacher=teacher if method.distillation else None,
        old_classes=len(request.teacher.classes),
        distillation=method.distillation,
        directional=method.directional_consistency if request.directional else None,
        previous=request.directional.previous if request.directional else {},
        direction=request.directional.direction if request.directional else {},
        ewc=method.ewc if request.consolidation else None,
        consolidation=request.consolidation,
        negatives=method.negatives,
        held_rows=rows if method.holds_rows else (),
        frozen=frozen,
        freeze_batch_norm=method.fixes_statistics or request.head_only,
        shared_prefixes=shared_prefixes,
        shared_lr_factor=method.shared_lr_factor,
        tower_lr_factor=method.tower_lr_factor,
        layer_decay=method.layer_decay,
        rows=rows,
        row_lr_factor=method.row_lr_factor,
        past_domains=request.past_domains,
        own_domain=request.own_domain,
        replay_share=method.replay.share if method.replay else 0.0,
        appearance_share=varied,
        seed=request.seed,
        progress=request.progress,
    )


def change_domains(images: Tensor, plan: StagePlan, generator: torch.Generator) -> Tensor:
    """Domain-statistics replay, then varied appearance, on part of a batch, in place.

    Args:
        images: (B, 3, H, W), 0 to 1; as the student sees them afterwards.
        plan: of the stage.
        generator: of the choices.

    Returns:
        The batch as the teacher sees it: re-coloured, and not varied.
    """
    if plan.past_domains and plan.own_domain is not None:
        recolour(images, plan.own_domain, plan.past_domains, plan.replay_share, generator)
    if not plan.appearance_share:
        return images
    taught = images.clone()
    vary(images, plan.appearance_share, generator)
    return taught


class AddedLosses:
    """Distillation and directional consistency of one stage, each listed by name.

    Args:
        plan: what the stage adds.
        model: the network in training.
        distill: (student's raw outputs, images) → distillation loss.
        scale: factor of the added losses: 1, or the batch size where the family's own loss is multiplied by it.
    """

    def __init__(
        self,
        plan: StagePlan,
        model: nn.Module,
        distill: Callable[[object, Tensor], Tensor],
        scale: Callable[[Tensor], float],
    ) -> None:
        self.plan, self.distill, self.scale = plan, distill, scale
        self.largest: dict[str, float] = {}
        self.trained = [value for name, value in model.named_parameters() if name not in plan.held_rows]
        self.start = self._sums()
        if plan.directional:
            self.directional = _aligned("directional consistency", model, plan.previous, plan.direction)
        if plan.ewc:
            held = plan.consolidation
            self.consolidation = _aligned("elastic weight consolidation", model, held.previous, held.fisher)

    def __call__(self, outputs: object, images: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The weighted terms, each of shape (1,), and the listed items: value and weighted value of each."""
        terms: list[Tensor] = []
        items: dict[str, Tensor] = {}
        for name, value, weight in self._values(outputs, images):
            terms.append((weight * value * self.scale(images)).view(1))
            items[f"{name}_loss"] = value.detach()
            items[f"{name}_weighted"] = weight * value.detach()
            self.largest[name] = max(self.largest.get(name, 0.0), abs(float(value.detach())))  # rounding may be < 0
        return terms, items

    def refuse_dead(self, steps: int) -> None:
        """Fail when a loss that is switched on was zero in every step, or the teacher's student stood still.

        Raises:
            RuntimeError: naming the loss.
        """
        plan = self.plan
        for name, settings in (("distill", plan.distillation), ("dc", plan.directional), ("ewc", plan.ewc)):
            if settings is not None and self.largest.get(name, 0.0) == 0.0:
                raise RuntimeError(
                    f"the {name} loss is switched on and stayed exactly zero for {steps} steps; "
                    f"nothing of the model it holds on to has moved"
                )
        # A teacher that is computed in another order leaves rounding where nothing has moved, of no fixed size.
        if plan.distillation is not None and self._sums() == self.start:
            raise RuntimeError(
                f"the distill loss is switched on and for {steps} steps nothing of the model it holds on to has moved"
            )

    def _sums(self) -> list[float]:
        """One number per tensor, by which one that has moved is told."""
        return [float(value.detach().double().sum()) for value in self.trained]

    def _values(self, outputs: object, images: Tensor):
        if self.plan.distillation is not None:
            yield "distill", self.distill(outputs, images), self.plan.distillation.weight
        if self.plan.directional is not None:
            settings = self.plan.directional
            yield "dc", directional_consistency(*self.directional, settings.granularity), settings.weight
        if self.plan.ewc is not None:
            yield "ewc", ewc_penalty(*self.consolidation), self.plan.ewc.weight


class HeldRows:
    """Keeps the old class rows of a head at their values; weight decay moves what has no gradient."""

    def __init__(self, plan: StagePlan, model: nn.Module) -> None:
        parameters = dict(model.named_parameters())
        tensors = [parameters[name] for name in plan.held_rows]
        self.rows = [(tensor, tensor.detach()[: plan.old_classes].clone()) for tensor in tensors]

    def before_step(self) -> None:
        """Take the old rows' gradients away."""
        for tensor, rows in self.rows:
            if tensor.grad is not None:
                tensor.grad[: len(rows)] = 0

    @torch.no_grad()
    def after_step(self) -> None:
        """Put the old rows back."""
        for tensor, rows in self.rows:
            tensor[: len(rows)] = rows


def _aligned(
    what: str, model: nn.Module, previous: Mapping[str, Tensor], constants: Mapping[str, Tensor]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Trained parameters, their earlier values and their constants, in one order and laid out alike in memory."""
    parameters = dict(model.named_parameters())
    missing = [key for key in previous if key not in parameters or key not in constants]
    if missing or not previous:
        raise RuntimeError(
            f"{what}: {len(missing)} of {len(previous)} shared parameters match nothing in the "
            f"model{', for example ' + repr(missing[0]) if missing else ''}"
        )
    keys = [key for key in previous if parameters[key].requires_grad]

    def laid_out(values: Mapping[str, Tensor]) -> list[Tensor]:
        return [torch.empty_like(parameters[key]).copy_(values[key]) for key in keys]

    return [parameters[key] for key in keys], laid_out(previous), laid_out(constants)


def not_finite(loss: str, epoch: int, rate: float) -> TrainingStopped:
    """The error for a loss that is no number any more.

    Args:
        loss: its name.
        epoch: of the stage, from 1.
        rate: the initial learning rate.
    """
    return TrainingStopped(f"epoch {epoch}: {loss} is not finite", f"train.lr0={rate / 4:g}")
