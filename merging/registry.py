"""The methods by name, and one call for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from merging.averaging import prepare_averaging, weight_averaging
from merging.blocks import Progress
from merging.checks import known
from merging.dare import dare_merging, prepare_dare
from merging.duet import duet_merging, prepare_duet
from merging.emr import emr_merging, prepare_emr
from merging.fisher import fisher_merging, prepare_fisher
from merging.job import merge_states
from merging.magmax import magmax_merging, prepare_magmax
from merging.merger import MergeSettings, Prepare
from merging.opening import open_family, open_models
from merging.result import MergeResult, State
from merging.slerp import prepare_slerp, slerp_merging
from merging.sources import TensorSource
from merging.task_arithmetic import prepare_task_arithmetic, task_arithmetic
from merging.ties import prepare_ties, ties_merging


@dataclass(frozen=True)
class Method:
    """One way to merge.

    Args:
        function: the method on mappings of tensors.
        prepare: the same over any source, block by block.
        defaults: its options.
        paper: where it comes from.
        model_lists: options without a default that are lists of models, such as Fisher mappings.
    """

    function: Callable[..., MergeResult]
    prepare: Prepare
    defaults: Mapping[str, Any]
    paper: str
    model_lists: tuple[str, ...] = ()


METHODS: dict[str, Method] = {
    "averaging": Method(
        weight_averaging,
        prepare_averaging,
        {"weights": None},
        "Wortsman et al., Model soups, ICML 2022",
    ),
    "task_arithmetic": Method(
        task_arithmetic,
        prepare_task_arithmetic,
        {"scaling_factor": 0.3},
        "Ilharco et al., Editing models with task arithmetic, ICLR 2023",
    ),
    "ties": Method(
        ties_merging,
        prepare_ties,
        {"density": 0.2, "scaling_factor": 1.0, "merge_function": "mean", "scope": "model"},
        "Yadav et al., TIES-Merging, NeurIPS 2023",
    ),
    "dare": Method(
        dare_merging,
        prepare_dare,
        {
            "drop_rate": 0.9,
            "seed": 0,
            "merge_with": "task_arithmetic",
            "scaling_factor": None,
            "density": None,
        },
        "Yu et al., Language models are super Mario (DARE), ICML 2024",
    ),
    "magmax": Method(
        magmax_merging,
        prepare_magmax,
        {"scaling_factor": 1.0},
        "Marczak et al., MagMax, ECCV 2024",
    ),
    "fisher": Method(
        fisher_merging,
        prepare_fisher,
        {"weights": None, "normalize": True, "floor": 1e-6},
        "Matena and Raffel, Merging models with Fisher-weighted averaging, NeurIPS 2022",
        model_lists=("fishers",),
    ),
    "emr": Method(
        emr_merging,
        prepare_emr,
        {"task": None, "scaling_factor": 1.0},
        "Huang et al., EMR-Merging, NeurIPS 2024",
    ),
    "slerp": Method(
        slerp_merging,
        prepare_slerp,
        {"t": 0.5, "scope": "tensor"},
        "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
    ),
    "duet": Method(
        duet_merging,
        prepare_duet,
        {"gamma": 0.1, "alpha_base": 0.5, "epsilon": 1e-8, "scope": "layer"},
        "Monga et al., DuET, ICCV 2025",
    ),
}

SETTINGS = tuple(field.name for field in fields(MergeSettings))


def merge(
    method: str,
    base: State | TensorSource | str | Path,
    models: Sequence[State | TensorSource | str | Path],
    *,
    progress: Progress | None = None,
    **options: Any,
) -> MergeResult:
    """Merge models into memory by the method of that name.

    Args:
        method: a key of ``METHODS``.
        base: the common ancestor θ_0: a mapping name → tensor, or the path of a model (see :func:`merging.merge_files`,
            which also writes the result without holding it).
        models: the models, in order; mappings or paths.
        progress: called with the name of the phase, the scalars done and the scalars in total.
        options: the method's options and the fields of :class:`MergeSettings`.

    Returns:
        The merged model; inputs are not changed.

    Raises:
        ValueError: for an unknown method or option, an option out of range, tensors that do not fit, numbers that are
            not finite, a file that is damaged, or a base that is the same file as a model.
        TypeError: when a model or option has the wrong type.
        FileNotFoundError: when a path does not exist.
    """
    own, settings = split_options(method, options)
    ancestor, sources = open_family(base, models)
    return merge_states(method, METHODS[method].prepare, ancestor, sources, own, settings, progress)


def try_options(method: str, options: Mapping[str, Any]) -> None:
    """Merge two models of two numbers, so that a wrong option is told before there are models to merge.

    Args:
        method: a key of ``METHODS``.
        options: as for :func:`merge`; lists of models are made here.

    Raises:
        ValueError: as :func:`merge`.
        TypeError: as :func:`merge`.
    """
    base, *models = ({"layer.weight": torch.tensor(numbers)} for numbers in ([0.5, 0.5], [1.0, 2.0], [3.0, 1.0]))
    made = dict.fromkeys(METHODS[method].model_lists, models) if method in METHODS else {}
    merge(method, base, models, **{**options, **made})


def split_options(method: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], MergeSettings]:
    """Check names, and tell a method's options from the settings that all share.

    Args:
        method: a key of ``METHODS``.
        options: by name.

    Returns:
        The method's options, with its defaults where none is given, and the settings.

    Raises:
        ValueError: for an unknown method or option, naming the nearest known one, or a missing option.
        TypeError: when a setting has the wrong type.
    """
    known("method", method, METHODS)
    entry = METHODS[method]
    names = [*entry.model_lists, *entry.defaults]
    for name in options:
        known(f"option of {method}", name, [*names, *SETTINGS])
    for name in entry.model_lists:
        if name not in options:
            raise ValueError(f"method '{method}' needs the option '{name}'")
    own = {**entry.defaults, **{name: value for name, value in options.items() if name in names}}
    own.update({name: open_models(own[name], name) for name in entry.model_lists})
    shared = {name: value for name, value in options.items() if name not in names}
    return own, MergeSettings(**shared)
