"""``duet fuse``: fine-tuned classifiers and language models of one pretrained model become one, without labels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from duet.command_line import bars, one_sentence
from duet.config import overlay, parse_assignments
from duet.documents import read_json, read_yaml
from duet.errors import InputError, nearest
from duet.paths import cache_folder, data_folder

if TYPE_CHECKING:
    from torch import Tensor

    from merging.fusion.problem import FusionProblem

OWN_FILES = ("config.yaml", "fuse.html", "merged", "results.csv", "results.json", "table.md")


def fuse(
    config: Annotated[
        str, typer.Argument(help="A YAML file, or a shipped name: embedded-pictures, embedded-texts, clip-vit-b32, …")
    ] = "embedded-pictures",
    seed: Annotated[int | None, typer.Option(help="Seed of data, masks and batches; the configuration's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results; runs/fuse-NAME-SEED by default.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder that the configuration's relative paths start from.")
    ] = None,
    keep: Annotated[str, typer.Option(help="Merged models to keep: best, all or none.")] = "best",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any key of the configuration.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results of an earlier fusion.")] = False,
) -> None:
    """Fuse models by every method, compare them on each task, and keep the merged model."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    if keep not in ("best", "all", "none"):
        raise InputError(f"--keep is '{keep}': expected best, all or none")
    values, where = _values(config)
    given: dict[str, Any] = {} if seed is None else {"seed": seed}
    if root is not None:
        given["root"] = str(root)
    values = overlay(overlay(values, given), parse_assignments(set_ or []))
    with one_sentence():
        from merging.fusion.config import parse_fusion

        settings = parse_fusion(values, where)
        folder = out or Path("runs") / f"fuse-{settings.name}-{settings.seed}"
        _check_folder(folder, overwrite)
        from merging.fusion.run import fuse as run
        from merging.placing import partial_folder, put_folder, tidy

        folder.parent.mkdir(parents=True, exist_ok=True)
        tidy(folder)
        with partial_folder(folder) as partial:  # an earlier fusion's results stay until the new ones are whole
            store = _Keeper(partial / "merged", keep)
            with bars() as progress:
                kept = None if keep == "none" else store
                results = run(settings, cache_folder() / "fusion", keep=kept, progress=_with_lines(progress))
            store.finish()
            from duet.report.fusion import fusion_markdown, write_fusion

            write_fusion(results, partial)
            put_folder(partial, folder)
    Console(markup=False, highlight=False).print(fusion_markdown(results), soft_wrap=True)
    Console(markup=False).print(f"Report: {folder / 'fuse.html'}", soft_wrap=True)


def _with_lines(bar: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """The progress bars, and one line per method and part where the output is no terminal."""
    from merging.fusion.methods import METHODS

    console, begun = Console(markup=False, highlight=False), set()

    def show(part: str, done: int, total: int) -> None:
        if part not in begun and not console.is_terminal:
            console.print(METHODS[part].label if part in METHODS else part, soft_wrap=True)
        begun.add(part)
        bar(part, done, total)

    return show


class _Keeper:
    """Writes merged models, in the format that they came in, beside what tells how they came about."""

    def __init__(self, folder: Path, which: str) -> None:
        self.folder = folder
        self.which = which
        self.best = -1.0
        self.held: dict[str, tuple[FusionProblem, Mapping[str, Tensor], Mapping[str, Any]]] = {}

    def __call__(self, name: str, problem: Any, state: Any, provenance: Any, average: float) -> None:
        """See :data:`merging.fusion.run.Keep`."""
        if self.which == "all":
            self._write(name, problem, state, provenance)
        elif self.which == "best" and average > self.best:
            self.best, self.held = average, {name: (problem, state, provenance)}

    def finish(self) -> None:
        """Write the best one."""
        for name, (problem, state, provenance) in self.held.items():
            self._write(name, problem, state, provenance)

    def _write(self, name: str, problem: Any, state: Any, provenance: Any) -> None:
        from merging.safetensors_writer import write_json

        target = self.folder / name
        target.mkdir(parents=True)
        problem.save(state, target)
        write_json(target / "provenance.json", provenance)


def _values(config: str) -> tuple[dict[str, Any], str]:
    path = Path(config)
    if path.suffix not in (".yaml", ".yml"):
        path = data_folder("fusion") / f"{config}.yaml"
        if not path.is_file():
            names = [found.stem for found in data_folder("fusion").glob("*.yaml")]
            raise InputError(f"unknown fusion '{config}'" + nearest(config, names) + " (or give a .yaml file)")
    return read_yaml(path), str(path)


def _check_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that is not ours, or holds results that are to stay."""
    if folder.is_symlink():
        raise InputError(f"{folder}: is a symbolic link, which is not replaced; choose another --out")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: is a file; choose another --out")
    if os.path.ismount(folder) or folder.samefile(Path.cwd()):
        raise InputError(f"{folder}: cannot be replaced as a whole; choose a folder below it as --out")
    foreign = sorted(found.name for found in folder.iterdir() if found.name not in OWN_FILES)
    foreign += sorted(f"merged/{found.name}" for found in folder.glob("merged/*") if not _is_kept_model(found))
    if foreign:
        raise InputError(f"{folder}: holds {foreign[0]}, which no fusion wrote; choose another --out")
    results = folder / "results.json"
    if results.is_file() and "methods" not in read_json(results):
        raise InputError(f"{folder}: holds the results of another command; choose another --out")
    if results.is_file() and not overwrite:
        raise InputError(f"{folder}: holds the results of a fusion; choose another --out, or say --overwrite")


def _is_kept_model(folder: Path) -> bool:
    return (folder / "provenance.json").is_file()
