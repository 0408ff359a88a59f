"""``duet merge``: the merging core on files, and how two models differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from duet.command_line import bars, one_sentence
from duet.config import parse_assignments
from duet.errors import InputError, nearest
from duet.options import TrustOption

# Spelled out, so that `--help` need not import torch; a test compares it with the table.
METHOD_NAMES = ("averaging", "task_arithmetic", "ties", "dare", "magmax", "fisher", "emr", "slerp", "duet")


def merge(
    method: Annotated[str, typer.Argument(help=f"One of {', '.join(METHOD_NAMES)}; or `diff` to compare two models.")],
    compared: Annotated[list[Path] | None, typer.Argument(metavar="[A B]", help="With `diff`: the two models.")] = None,
    base: Annotated[Path | None, typer.Option(help="The pretrained model: a file, or a folder with shards.")] = None,
    models: Annotated[list[Path] | None, typer.Option(help="The fine-tuned models, in order: --models B C.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="A .safetensors file, a folder, or .pt from checkpoints; with `diff` a .png.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of the method, e.g. density=0.2.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    trust: TrustOption = False,
) -> None:
    """Merge fine-tuned models of one pretrained model, on disk, without holding them in memory."""
    options = parse_assignments(set_ or [])
    if method == "diff":
        _diff(compared or [], base, out, options, trust)
        return
    if method not in METHOD_NAMES:
        raise InputError(f"unknown merging method '{method}'" + nearest(method, [*METHOD_NAMES, "diff"]))
    if base is None or not models or compared:
        raise InputError(f"merge {method}: expected --base MODEL --models MODEL [MODEL …] --out PATH")
    from duet.merge_checkpoints import merge_into_checkpoint, open_input, refuse_other_heads
    from merging.files import merge_files, plan_files

    with one_sentence():
        ancestor, tuned = open_input(base, trust), [open_input(path, trust) for path in models]
        refuse_other_heads(ancestor, tuned, options.get("policy", "error"))
        plain = [given.model for given in tuned]
        if dry_run:
            Console(highlight=False, markup=False).print(
                plan_files(method, ancestor.model, plain, **options).table(), soft_wrap=True
            )
            return
        if out is None:
            raise InputError(f"merge {method}: --out is missing")
        with bars() as progress:
            given = {"progress": progress, "overwrite": overwrite, **options}
            if out.suffix == ".pt":
                done = merge_into_checkpoint(method, ancestor, tuned, out, **given)
            else:
                done = merge_files(method, ancestor.model, plain, out, **given)
    Console(markup=False).print(f"Merged: {done.path}   Provenance: {done.provenance_path}", soft_wrap=True)


def _diff(pair: list[Path], base: Path | None, out: Path | None, options: dict[str, Any], trust: bool) -> None:
    if len(pair) != 2:
        raise InputError(f"merge diff: expected two models, found {len(pair)}")
    from duet.merge_checkpoints import open_input
    from merging.analysis import diff
    from merging.plots import plot_comparison

    with one_sentence(), bars() as progress:
        first, second, ancestor = (path and open_input(path, trust).model for path in (*pair, base))
        comparison = diff(first, second, base=ancestor, progress=progress, **options)
        if out is not None:
            plot_comparison(comparison, out)
    Console(highlight=False, markup=False).print(comparison.table(), soft_wrap=True)
