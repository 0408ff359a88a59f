"""Which cells run: finished ones never again, failed ones on request, shared trainings made once."""

import json

import pytest

from duet.comparison.records import cell_files, read_record, write_record
from duet.comparison.schedule import Display, Queue, run_cells
from duet.errors import InputError


@pytest.fixture
def cells(make_cells):
    return make_cells(methods=["duet", "lwf"], seeds=[0, 1])


def names(jobs):
    return [job.name for job in jobs]


def test_everything_runs_once_in_the_slots_given(cells, make_engine, tmp_path):
    engine = make_engine(slots=2)
    records = run_cells(cells, tmp_path / "out", engine, Display())
    assert sorted(names(engine.started)) == sorted(cell.name for cell in cells)
    assert engine.most == 2 and engine.stopped
    assert {record.status for record in records.values()} == {"finished"}


def test_finished_cells_are_skipped(cells, make_engine, tmp_path):
    run_cells(cells[:2], tmp_path / "out", make_engine(), Display())
    engine = make_engine()
    run_cells(cells, tmp_path / "out", engine, Display())
    assert sorted(names(engine.started)) == sorted(cell.name for cell in cells[2:])


def test_a_finished_record_without_its_run_is_run_again(cells, make_engine, tmp_path):
    run_cells(cells[:1], tmp_path / "out", make_engine(), Display())
    (cell_files(tmp_path / "out", cells[0].name).run / "results.json").unlink()
    engine = make_engine()
    run_cells(cells[:1], tmp_path / "out", engine, Display())
    assert names(engine.started) == [cells[0].name]


def test_damaged_results_are_that_cells_failure_and_no_other(cells, make_engine, tmp_path):
    run_cells(cells, tmp_path / "out", make_engine(), Display())
    path = cell_files(tmp_path / "out", cells[0].name).run / "results.json"
    path.write_text('{"stages": [')
    engine = make_engine()
    records = run_cells(cells, tmp_path / "out", engine, Display())
    assert engine.started == [] and [records[cell.name].status for cell in cells[1:]] == ["finished"] * 3
    assert "results.json, line 1: not JSON" in records[cells[0].name].error
    assert "--retry-failed" in records[cells[0].name].error
    run_cells(cells, tmp_path / "out", engine, Display(), retry_failed=True)
    assert names(engine.started) == [cells[0].name]


def test_a_finished_cell_without_the_intervals_that_are_asked_for_gets_them(cells, make_engine, tmp_path):
    run_cells(cells[:1], tmp_path / "out", make_engine(), Display())
    run = cell_files(tmp_path / "out", cells[0].name).run
    resamples = cells[0].config.evaluation.bootstrap
    assert read_record(tmp_path / "out", cells[0]).status == "finished"  # it kept no detections to make them of
    (run / "stages" / "2").mkdir(parents=True)
    (run / "stages" / "2" / "detections.safetensors").write_text("")
    assert read_record(tmp_path / "out", cells[0]).status == "pending"
    (run / "bootstrap.safetensors").write_text("")
    for count, status in ((resamples, "finished"), (resamples + 1, "pending")):
        (run / "results.json").write_text(json.dumps({"intervals": {"resamples": count}}))
        assert read_record(tmp_path / "out", cells[0]).status == status


def test_a_damaged_record_is_no_reason_to_lose_the_run(cells, make_engine, tmp_path):
    run_cells(cells[:1], tmp_path / "out", make_engine(), Display())
    cell_files(tmp_path / "out", cells[0].name).record.write_text("{")
    engine = make_engine()
    assert run_cells(cells[:1], tmp_path / "out", engine, Display())[cells[0].name].status == "finished"
    assert names(engine.started) == [cells[0].name]


def test_a_crash_leaves_its_last_lines_and_the_others_run_on(cells, make_engine, tmp_path):
    log = cell_files(tmp_path / "out", cells[0].name).log
    log.parent.mkdir(parents=True)
    log.write_text("".join(f"line {number}\n\n" for number in range(100)))
    engine = make_engine(codes={cells[0].name: -9})
    records = run_cells(cells, tmp_path / "out", engine, Display())
    failed = records[cells[0].name]
    assert failed.status == "failed" and failed.error.startswith("the process was ended by signal 9")
    assert failed.error.endswith(f"; its log is {log}")
    assert failed.log_tail == tuple(f"line {number}" for number in range(85, 100))
    assert [records[cell.name].status for cell in cells[1:]] == ["finished"] * 3
    assert read_record(tmp_path / "out", cells[0]) == failed


def test_failed_cells_run_again_only_on_request(cells, make_engine, tmp_path):
    run_cells(cells, tmp_path / "out", make_engine(codes={cells[1].name: 3}), Display())
    engine = make_engine()
    records = run_cells(cells, tmp_path / "out", engine, Display())
    assert engine.started == [] and "the process ended with exit code 3;" in records[cells[1].name].error
    records = run_cells(cells, tmp_path / "out", engine, Display(), retry_failed=True)
    assert names(engine.started) == [cells[1].name] and records[cells[1].name].status == "finished"


def test_another_configuration_in_a_finished_place_is_refused_before_anything_starts(
    cells, make_cells, make_engine, tmp_path
):
    run_cells(cells, tmp_path / "out", make_engine(), Display())
    engine, changed = make_engine(), make_cells(methods=["ewc", "duet"], seeds=[0], train={"epochs": 9})
    with pytest.raises(InputError, match=r"tiny/yolo11n/duet/seed-0: was run with another configuration"):
        run_cells(changed, tmp_path / "out", engine, Display())
    assert engine.started == []


def test_a_failure_under_another_configuration_does_not_count(cells, make_cells, tmp_path):
    write_record(cell_files(tmp_path, cells[0].name).record, cells[0].config, "failed", "old")
    changed = make_cells(methods=["duet"], seeds=[0], train={"epochs": 9})[0]
    assert read_record(tmp_path, changed).status == "pending"


def test_cells_that_would_wait_for_a_shared_training_are_taken_later(make_cells):
    cells = make_cells(methods=["duet", "lwf"], seeds=[0, 1])
    queue = Queue([cells[0], cells[2], cells[1], cells[3]])  # duet 0, lwf 0, duet 1, lwf 1
    first = queue.take([])
    second = queue.take([first])
    assert (first.seed, second.seed) == (0, 1)
    assert queue.take([first, second]) is cells[2]  # nothing else is left: it waits for the training
    queue.ended(first)
    assert queue.take([second]) is cells[3]


def test_each_slot_has_its_environment(cells, make_engine, tmp_path):
    engine = make_engine(slots=2)
    run_cells(cells, tmp_path / "out", engine, Display(), [{"CARD": "4"}, {"CARD": "7"}])
    assert [job.environment["CARD"] for job in engine.started[:2]] == ["4", "7"]
    assert {job.environment["OMP_NUM_THREADS"] for job in engine.started} == {"1"}


def test_the_engine_is_stopped_when_the_display_breaks(cells, make_engine, tmp_path):
    class Broken(Display):
        def progress(self, running):
            raise KeyboardInterrupt

    engine = make_engine()
    with pytest.raises(KeyboardInterrupt):
        run_cells(cells, tmp_path / "out", engine, Broken())
    assert engine.stopped


def test_cells_that_train_alike_get_a_folder_for_it_and_run_one_after_another(make_cells, make_engine, tmp_path):
    cells = make_cells(methods=["duet-paper", "lwf"], mergers=["own", "ties"], seeds=[0])
    cells = [cell for cell in cells if cell.label != "lwf"]  # duet-paper, duet-paper+ties, lwf+ties
    engine = make_engine(slots=1)
    run_cells(cells, tmp_path / "out", engine, Display())
    folders = {job.name.split("/")[2]: job.trainings for job in engine.started}
    kept = str((tmp_path / "out" / "trainings").resolve())
    assert folders == {"duet-paper": kept, "duet-paper+ties": kept, "lwf+ties": None}
    assert cells[0].later_training in cells[0].shared & cells[1].shared
