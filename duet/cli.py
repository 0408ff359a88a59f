"""The ``duet`` command; the files in ``tools/`` are the same entry points."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from duet.compare_command import compare
from duet.data_command import data
from duet.disk import disk_error
from duet.errors import InputError, TrainingStopped, first_line
from duet.evaluate_command import evaluate
from duet.export_command import export
from duet.fuse_command import fuse
from duet.inspect_command import inspect
from duet.merge_command import merge
from duet.options import TrustOption
from duet.predict_command import predict
from duet.update_command import update

app = typer.Typer(
    help="Teach a deployed object detector new classes in a new domain, without the old pictures.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override any key of the configuration, e.g. train.epochs=8."),
]


@app.callback()
def quiet_libraries() -> None:
    """Quiet the libraries; only this command prints."""
    os.environ.setdefault("YOLO_VERBOSE", "false")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")  # a missing package is named, not fetched
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    warnings.filterwarnings("ignore", category=UserWarning)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(help="YAML file with the same keys as --set.")] = None,
    series: Annotated[
        str | None, typer.Option(help="Name of a shipped series, or a series YAML; demo by default.")
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Name of pretrained weights, or a .pt file; yolo11n by default.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="duet (the default), duet-paper, sequential, frozen, lwf, erd, ewc, pseudo-label, replay, "
            "individual, restart or joint."
        ),
    ] = None,
    merger: Annotated[
        str | None, typer.Option(help="Merger of the shared parameters in place of the method's own, e.g. ties.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the whole run; 0 by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/SERIES-METHOD-SEED by default.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder that the series' relative paths start from.")] = None,
    set_: SetOption = None,
    trust: TrustOption = False,
) -> None:
    """Train a series task after task and report what was kept and what was learned.

    Started again with the same options, a stopped run goes on at the stage where it stood.
    """
    from duet import processes
    from duet.config import overlay, parse_assignments
    from duet.learner import Learner
    from duet.monitor import ConsoleMonitor
    from duet.resolve import resolve_config

    given = {"series": series, "detector": detector, "method": method, "seed": seed}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if root is not None:
        options["root"] = str(root)
    assignments = parse_assignments(set_ or [])
    if merger is not None:
        assignments = overlay({"method": {"merge": {"name": merger}}}, assignments)
    resolved = resolve_config(config, options, assignments)
    if processes.started() > 1 and resolved.train.process_count == 1:  # torchrun says it as well
        shared = resolved.train.model_copy(update={"processes": processes.started()})
        resolved = resolved.model_copy(update={"train": shared})
    folder = out or Path("runs") / f"{Path(resolved.series).stem}-{resolved.method.name}-{resolved.seed}"

    def run() -> Any:
        with ConsoleMonitor() as monitor:
            return Learner(resolved, folder, monitor, trust).run()

    try:
        if processes.lead(resolved.train, run) is None:
            return  # a process that only took part in the trainings
    except KeyboardInterrupt:  # caught here, because the command-line library would end without a word
        _fail("stopped; the same command goes on where it stood", 130)
    deployed = f"   Detector: {folder / 'detector.pt'}" if (folder / "detector.pt").is_file() else ""
    Console().print(f"Report: {folder / 'report.html'}{deployed}", soft_wrap=True)


@app.command()
def weights(
    name: Annotated[str, typer.Argument(help="Name in weights/manifest.yaml, e.g. yolo11n.")],
    source: Annotated[
        Path | None, typer.Option("--from", help="Detector to store in half precision under this name.")
    ] = None,
) -> None:
    """Fetch pretrained weights once and print where they are; with --from, write what ships under a name."""
    from duet.state import sha256_of
    from duet.weights import find_weights, ship_weights

    if source is None:
        typer.echo(find_weights(name))
        return
    path = ship_weights(source, name)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256_of(path)}")


app.command(name="compare")(compare)
app.command(name="evaluate")(evaluate)
app.command(name="export")(export)
app.command(name="fuse")(fuse)
app.command(name="inspect")(inspect)
app.command(name="merge")(merge)
app.command(name="update")(update)
app.command(name="predict")(predict)
app.add_typer(data, name="data")


@app.command()
def summary(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.")],
    metric: Annotated[str, typer.Option(help="map50 or map50_95.")] = "map50",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Finished runs, or fusions, side by side: one line per method, means and deviations over seeds."""
    from duet.documents import read_json
    from duet.report.summary import summary_markdown, summary_rows, summary_table

    if metric not in ("map50", "map50_95"):
        raise InputError(f"--metric is '{metric}': expected map50 or map50_95")
    missing = [folder for folder in runs if not (folder / "results.json").is_file()]
    if missing:
        raise InputError(f"{missing[0]}: no results.json; is it a run folder?")
    documents = [read_json(folder / "results.json") for folder in runs]
    try:
        if documents and all("methods" in document for document in documents):
            from duet.report.fusion import fusion_summary

            typer.echo(fusion_summary(documents))
            return
        rows = summary_rows(documents, metric)
    except ValueError as error:
        raise InputError(str(error)) from error
    if markdown:
        typer.echo(summary_markdown(rows))
    else:
        console = Console()
        (console if console.is_terminal else Console(width=120)).print(summary_table(rows))


def main(command: str | None = None) -> None:
    """Run the command line; input errors become one sentence on stderr and exit code 2.

    Args:
        command: the subcommand of a file in ``tools/``; None takes it from the arguments.
    """
    arguments = _repeated("--classes", _repeated("--models", sys.argv[1:]))
    arguments = arguments if command is None else [command, *arguments]
    try:
        _run(arguments)
    except InputError as error:
        _fail(str(error), 2)
    except TrainingStopped as error:
        _fail(str(error), 1)
    except (RuntimeError, ValueError, OSError) as error:
        if os.environ.get("DUET_TRACEBACK"):
            raise
        explained = disk_error(error, Path(getattr(error, "filename", None) or "output"))
        if explained is not None:
            _fail(str(explained), 1)
        _fail(f"{first_line(error)} (DUET_TRACEBACK=1 shows where)", 1)


def _run(arguments: list[str]) -> None:
    if arguments[:1] != ["train"]:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError("only `duet train` runs in several processes; start other commands without torchrun")
        app(args=arguments)
        return
    from duet import processes

    processes.forget_a_single_process()
    try:
        app(args=arguments)
    except processes.NeedsProcesses as needed:
        raise SystemExit(processes.launch(needed.count, arguments)) from None


def _repeated(option: str, arguments: list[str]) -> list[str]:
    """``--models B C`` as ``--models B --models C``."""
    spelled: list[str] = []
    listing = False
    for argument in arguments:
        listing = argument == option or (listing and not argument.startswith("-"))
        if listing and argument != option:
            spelled += [option, argument]
        elif argument != option:
            spelled.append(argument)
    return spelled


def _fail(sentence: str, code: int) -> None:
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from duet import processes

        if not processes.is_first_to_fail():
            raise SystemExit(code)  # another one has said why
        if processes.rank() > 0:
            sentence = f"process {processes.rank()} of {processes.started()}: {sentence}"
    Console(stderr=True, soft_wrap=True, highlight=False, markup=False).print(f"Error: {sentence}")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
