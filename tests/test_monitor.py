import io

from rich.console import Console

from duet.detectors.base import StageProgress
from duet.monitor import ConsoleMonitor, Monitor


def steps(monitor, epochs=2, per_epoch=3):
    for step in range(1, epochs * per_epoch + 1):
        epoch = (step - 1) // per_epoch + 1
        losses = {"box_loss": 1.25, "dc_loss": 0.5, "dc_weighted": 0.005}
        monitor.train_step(StageProgress(step, epochs * per_epoch, epoch, epochs, losses))


def test_a_file_gets_one_line_per_epoch_with_every_loss_by_name():
    text = io.StringIO()
    with ConsoleMonitor(Console(file=text, width=200)) as monitor:
        monitor.plan(6)
        monitor.begin("stage 1/1: day", 6)
        steps(monitor)
        monitor.show("done")
    lines = [line.strip() for line in text.getvalue().splitlines() if line.strip()]
    assert lines == [
        "stage 1/1: day",
        "stage 1/1: day: epoch 1/2  box 1.25  dc 0.5  dc_weighted 0.005",
        "stage 1/1: day: epoch 2/2  box 1.25  dc 0.5  dc_weighted 0.005",
        "done",
    ]


def test_a_terminal_gets_bars_for_the_run_and_the_stage():
    text = io.StringIO()
    with ConsoleMonitor(Console(file=text, width=200, force_terminal=True)) as monitor:
        monitor.plan(12)
        monitor.begin("stage 1/2: day", 6)
        steps(monitor)
        monitor.begin("stage 2/2: night", 6)
        steps(monitor)
    shown = text.getvalue()
    assert "12/12" in shown
    assert "stage 2/2: night" in shown
    assert "dc_weighted 0.005" in shown
    assert "left" in shown


def test_a_calibration_after_the_training_moves_both_on():
    text = io.StringIO()
    with ConsoleMonitor(Console(file=text, width=200)) as monitor:
        monitor.plan(15)
        monitor.begin("stage 1/2: day", 6)
        steps(monitor)
        monitor.begin("stage 2/2: night", 6)
        steps(monitor)
        steps(monitor, epochs=1)
        assert monitor.steps_done == 15
    assert "stage 2/2: night: epoch 1/1" in text.getvalue()


def test_the_silent_monitor_takes_everything():
    with Monitor() as monitor:
        monitor.plan(1)
        monitor.begin("x", 1)
        monitor.advance(1)
        steps(monitor)
        monitor.show("y")
