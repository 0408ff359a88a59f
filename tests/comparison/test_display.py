"""What a grid shows while it runs, in a terminal and in a log."""

import io

from rich.console import Console

from duet.comparison.display import ConsoleDisplay
from duet.comparison.records import CellRecord

PENDING = CellRecord("pending")


def test_a_log_has_a_line_per_event(make_cells):
    cells = make_cells(methods=["duet", "lwf", "ewc"])
    text = io.StringIO()
    with ConsoleDisplay(console=Console(file=text, width=200)) as display:
        display.plan(
            cells, {cells[0].name: CellRecord("finished"), cells[1].name: CellRecord("failed"), cells[2].name: PENDING}
        )
        display.started(cells[2])
        display.progress({cells[2].name: {"title": "stage 1", "done": 1, "total": 2, "steps": 1, "planned": 4}})
        display.ended(cells[2], CellRecord("failed", "no [space] left"))
    assert text.getvalue().splitlines() == [
        "3 runs: 1 finished before, 1 to do, 1 failed before (--retry-failed runs them again)",
        "started  tiny/yolo11n/ewc/seed-0",
        "failed   tiny/yolo11n/ewc/seed-0: no [space] left",
    ]


def test_a_terminal_has_bars_for_all_runs_and_for_each(make_cells):
    cells = make_cells(methods=["duet"])
    text = io.StringIO()
    console = Console(file=text, width=200, force_terminal=True)
    with ConsoleDisplay(console=console) as display:
        display.plan(cells, {cells[0].name: PENDING})
        display.started(cells[0])
        display.progress({cells[0].name: {"title": "stage 1/2", "done": 3, "total": 9, "steps": 10, "planned": 40}})
        display._bars.refresh()
        bars = {task.description: task for task in display._bars.tasks}
        assert bars["all runs"].completed == 0.25 and bars["all runs"].total == 1
        assert bars[cells[0].name].completed == 10 and bars[cells[0].name].fields["text"] == "stage 1/2 3/9"
        display.progress({cells[0].name: {}})  # the worker has not written yet
        display.ended(cells[0], CellRecord("finished"))
        assert [task.description for task in display._bars.tasks] == ["all runs"]
    assert "stage 1/2 3/9" in text.getvalue()
