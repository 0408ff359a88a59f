"""What a comparison's cells are among each other, by their methods."""

import pytest

from duet.comparison.outputs import compared_runs, kind_of
from duet.comparison.schedule import read_records
from duet.methods import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_break_a_rule_are_no_rivals(name):
    expected = {"joint": "joint", "replay": "exemplars", "individual": "committee"}
    assert kind_of(METHODS[name]) == expected.get(name, "method")


def test_a_run_that_has_not_begun_has_its_kind(make_cells, tmp_path):
    cells = make_cells(methods=["joint", "duet", "replay"])
    runs = compared_runs(cells, read_records(cells, tmp_path), tmp_path)
    assert [(run.label, run.kind, run.status) for run in runs] == [
        ("joint", "joint", "pending"),
        ("duet", "method", "pending"),
        ("replay", "exemplars", "pending"),
    ]
