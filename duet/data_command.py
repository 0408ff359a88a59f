"""``duet data``: check, convert, divide, show and draw anew what a series trains on."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from duet.command_line import bars
from duet.errors import InputError, nearest

if TYPE_CHECKING:
    from duet.datasets.check import CheckResult
    from duet.datasets.convert import Written
    from duet.datasets.faults import Fault
    from duet.datasets.images import LabelledImage

data = typer.Typer(help="Check, convert, divide and show data; make new domains and series.", no_args_is_help=True)

FORMAT_NAMES = ("yolo", "voc", "coco")
MOST_SHOWN = 20  # faults of one level; the rest is counted

Folder = Annotated[
    Path, typer.Argument(help="A VOC, YOLO or COCO folder, a YOLO data.yaml, or a COCO .json file.", metavar="DATA")
]
Images = Annotated[Path | None, typer.Option(help="Image folder of a COCO file, where it is not beside it.")]
Out = Annotated[Path, typer.Option(help="The folder to write; absent or empty.")]
To = Annotated[str | None, typer.Option(help=f"Format to write: {', '.join(FORMAT_NAMES)}; by default the same.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.", min=0)]
Root = Annotated[Path | None, typer.Option(help="Folder that the series' relative paths start from.")]


@data.command()
def check(
    series: Annotated[str, typer.Argument(help="Name of a shipped series, or a series YAML.")],
    root: Root = None,
) -> None:
    """Find everything that is wrong with the data of a series; exit code 1 when training would be refused."""
    from duet.datasets.check import check_series
    from duet.datasets.series_file import find_series

    with bars() as progress:
        source = find_series(series, root)
        result = check_series(source, progress)
    console = _console()
    console.print(counts_table(result, source.series.classes))
    for line in fault_lines(result.faults):
        console.print(line, soft_wrap=True)
    if result.errors:
        raise typer.Exit(1)


@data.command()
def convert(
    folder: Folder,
    to: Annotated[str, typer.Option(help=f"Format to write: {', '.join(FORMAT_NAMES)}.")],
    out: Out,
    images: Images = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the pictures instead of linking them.")] = False,
) -> None:
    """Write a data set in another format."""
    from duet.datasets.convert import write_dataset
    from duet.datasets.dataset_folder import open_folder

    dataset = open_folder(folder, images)
    with bars() as progress:
        splits = dataset.read(lambda done, total: progress("read", done, total))
    _tell(write_dataset(splits, dataset.names, out, _format(to), copy), out)


@data.command()
def split(
    folder: Folder,
    train: Annotated[float, typer.Option(help="Share of the images to train on.")] = 0.8,
    val: Annotated[float, typer.Option(help="Share of the images to choose settings on.")] = 0.0,
    test: Annotated[float, typer.Option(help="Share of the images to test on.")] = 0.2,
    of: Annotated[
        str | None, typer.Option(help="Divide this split alone: train becomes train-train, train-val and so on.")
    ] = None,
    seed: Seed = 0,
    images: Images = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace lists that are there.")] = False,
) -> None:
    """Divide a data set at random and write a list of image names for each split."""
    from duet.datasets.dataset_folder import open_folder
    from duet.datasets.splitting import write_split

    counts = write_split(open_folder(folder, images), {"train": train, "val": val, "test": test}, seed, overwrite, of)
    Console().print("Images: " + ", ".join(f"{name} {count}" for name, count in counts.items()))


@data.command()
def show(
    target: Annotated[str, typer.Argument(help="A series (name or YAML) or a data set (as for convert).")],
    out: Annotated[Path, typer.Option(help="Folder for the PNG files, one per domain and split.")],
    count: Annotated[int, typer.Option(help="Pictures per page.", min=1)] = 12,
    seed: Seed = 0,
    root: Root = None,
    images: Images = None,
) -> None:
    """Draw sample pages: pictures with their boxes."""
    from duet.report.sample_pages import sample_page

    with bars() as progress:
        pages = _pages(target, root, images, progress)
        for title, (chosen, classes) in pages.items():
            path = out / f"{title}.png"
            sample_page(chosen(), classes, path, count, seed=seed)
            Console().print(str(path), soft_wrap=True, highlight=False)


@data.command(name="make-domain")
def make_domain(
    folder: Folder,
    shift: Annotated[str, typer.Option(help="night, fog, rain, snow, low-light, motion-blur, watercolour, comic, …")],
    out: Out,
    strength: Annotated[float, typer.Option(help="0 (the picture itself) to 1.5.", min=0, max=1.5)] = 1.0,
    seed: Seed = 0,
    to: To = None,
    images: Images = None,
) -> None:
    """Draw a data set anew in another domain; boxes and splits stay."""
    from duet.datasets.convert import write_dataset
    from duet.datasets.dataset_folder import open_folder
    from duet.datasets.domains import SHIFTS
    from duet.datasets.shifted import Shift, draw_shifted

    if shift not in SHIFTS:
        raise InputError(f"unknown shift '{shift}'" + nearest(shift, SHIFTS))
    dataset = open_folder(folder, images)
    with bars() as progress, _scratch(out) as scratch:
        splits = dataset.read(lambda done, total: progress("read", done, total))
        every = {image.path: image for part in splits.values() for image in part}
        told = lambda done, total: progress(f"draw {shift}", done, total)  # noqa: E731
        drawn = dict(zip(every, draw_shifted(list(every.values()), Shift(shift, seed, strength), scratch, told)))
        moved = {name: [drawn[image.path] for image in part] for name, part in splits.items()}
        written = write_dataset(moved, dataset.names, out, _format(to or dataset.format), copy=True)
    _tell(written, out)


@data.command(name="new-series")
def new_series(
    out: Annotated[Path, typer.Argument(help="The YAML file to write.")],
    task: Annotated[
        list[str] | None, typer.Option("--task", metavar="DATA:CLASS,CLASS", help="A task; once for each, in order.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the series; the file's by default.")] = None,
) -> None:
    """Write a series file from folders; asks for the tasks when no --task is given."""
    from duet.datasets.new_series import TaskChoice, write_series

    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"{out}: expected a file name that ends in .yaml")
    tasks = [TaskChoice.parse(text) for text in task or _asked()]
    source = write_series(out, name or out.stem, tasks)
    for number, item in enumerate(source.series.tasks, start=1):
        Console().print(f"Task {number}: {item.domain}: {', '.join(item.classes)}", highlight=False)
    Console().print(f"Series: {out}   Next: duet data check {out}", soft_wrap=True, highlight=False)


@data.command()
def sheet(
    out: Annotated[Path, typer.Option(help="The PNG file; replaced.")],
    picture: Annotated[Path | None, typer.Argument(help="A picture; scikit-learn's photograph by default.")] = None,
    width: Annotated[int, typer.Option(help="Width of each drawing, pixels.", min=32)] = 240,
    strength: Annotated[float, typer.Option(help="0 (the picture itself) to 1.5.", min=0, max=1.5)] = 1.0,
    seed: Seed = 0,
) -> None:
    """Draw one picture in every domain shift, on one sheet."""
    from duet.datasets.pictures import read_bgr
    from duet.datasets.shifted import Shift
    from duet.report.sample_pages import shift_sheet

    if picture is None:
        import sklearn.datasets

        picture = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
    shift_sheet(read_bgr(picture), out, width, Shift("clear", seed, strength))
    Console().print(str(out), soft_wrap=True, highlight=False)


def counts_table(result: CheckResult, classes: Sequence[str]) -> Table:
    """Images and boxes of every domain and split, and boxes by class; ignored ones stand behind a plus.

    Args:
        result: of the check.
        classes: those of the series, which come first; others of the labels follow.
    """
    table = Table(box=box.SIMPLE_HEAD, title="Images and boxes", title_justify="left")
    table.add_column("")
    for item in result.counts:
        table.add_column(escape(f"{item.domain}\n{item.split}"), justify="right")
    table.add_row("images", *(str(item.images) for item in result.counts))
    table.add_row("boxes", *(_boxes(item.boxes.total(), item.ignored.total()) for item in result.counts))
    table.add_section()
    others = sorted({name for item in result.counts for name in (*item.boxes, *item.ignored)})
    for name in dict.fromkeys((*classes, *others)):
        table.add_row(escape(name), *(_boxes(item.boxes[name], item.ignored[name]) for item in result.counts))
    return table


def fault_lines(faults: Sequence[Fault]) -> list[str]:
    """The faults for the terminal: errors and warnings one by one, notes of one kind together."""
    shown: Counter[str] = Counter()
    notes: dict[str, list[str]] = {}
    lines = []
    for fault in faults:
        if fault.level.value == "note":
            notes.setdefault(fault.what, []).append(fault.where)
            continue
        shown[fault.level.value] += 1
        if shown[fault.level.value] <= MOST_SHOWN:
            lines.append(f"{_marked(fault.level.value)} {escape(fault.sentence)}")
    for level, count in shown.items():
        if count > MOST_SHOWN:
            lines.append(f"{_marked(level)} and {count - MOST_SHOWN} more")
    for what, places in notes.items():
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        lines.append(f"{_marked('note')} {escape(places[0])}{more}: {escape(what)}")
    counts = Counter(fault.level.value for fault in faults)
    total = ", ".join(f"{counts[level]} {level}s" for level in ("error", "warning", "note"))
    return [*lines, f"Found: {total}."]


def _pages(
    target: str, root: Path | None, images: Path | None, progress: Callable[[str, int, int], None]
) -> dict[str, tuple[Callable[[], Sequence[LabelledImage]], Sequence[str]]]:
    """By title: how to read the images, and the class names."""
    from duet.datasets.dataset_folder import open_folder
    from duet.datasets.domain import open_domains
    from duet.datasets.series_file import find_series
    from duet.documents import read_yaml

    path = Path(target).expanduser()
    if path.exists() and not (path.suffix in (".yaml", ".yml") and "tasks" in read_yaml(path)):
        dataset = open_folder(path, images)
        read = dataset.read(lambda done, total: progress("read", done, total))
        return {name: (lambda found=found: found, dataset.names) for name, found in read.items()}
    source = find_series(target, root)
    pages = {}
    for name, domain in open_domains(source, progress).items():
        if name in source.series.domains:
            pages[f"{name}-train"] = (domain.train, source.series.classes)
        pages[f"{name}-test"] = (domain.test, source.series.classes)
    return pages


def _asked() -> Iterator[str]:
    """The tasks, one after the other, until an empty answer."""
    from duet.datasets.dataset_folder import open_folder

    for number in range(1, 1000):
        place = typer.prompt(f"Task {number}: folder of its data (empty when done)", default="", show_default=False)
        if not place and number > 1:
            return
        names = open_folder(Path(place).expanduser()).names
        yield f"{place}:{typer.prompt(f'  classes to learn there, of {chr(44).join(names)}')}"


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder beside the output that is gone afterwards."""
    folder = out.with_name(f".{out.name}.{os.getpid()}.drawn")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _format(name: str) -> str:
    if name not in FORMAT_NAMES:
        raise InputError(f"unknown format '{name}'" + nearest(name, FORMAT_NAMES))
    return name


def _tell(written: Written, out: Path) -> None:
    flagged = f"; {written.left_out} flagged boxes left out, the format has no flags" if written.left_out else ""
    Console().print(f"{out}: {written.images} images, {written.boxes} boxes{flagged}", soft_wrap=True, highlight=False)


def _boxes(count: int, ignored: int) -> str:
    return f"{count} + {ignored}" if ignored else str(count)


def _marked(level: str) -> str:
    return f"[{ {'error': 'bold red', 'warning': 'yellow', 'note': 'dim'}[level] }]{level}[/]"


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=160, highlight=False)
