import pytest

from duet.report.summary import summary_markdown, summary_rows, summary_table


def run(method, seed, overall, rai=0.5, stages=2, joint=False, grid=(0.2, 0.4)):
    indices = {"overall": overall, "rai": rai, "ni": 0.25, "avg_ri": 0.5, "avg_gi": 0.5}
    cells = [{"map50": value, "map50_95": value and value / 2} for value in grid]
    return {
        "series": {"name": "s", "tasks": [{}] * 2},
        "detector": "d",
        "method": method,
        "seed": seed,
        "reference": {"kind": "joint"},
        "settings": {"method": {"joint": joint}},
        "stages": [{"grid": cells}] * stages,
        "indices": {"map50": indices, "map50_95": {**indices, "overall": 0.1}},
    }


def test_means_and_deviations_by_hand():
    rows = summary_rows([run("a", 0, 0.4), run("b", 0, 0.9), run("a", 1, 0.8, grid=(None, 0.6))])
    assert [row["method"] for row in rows] == ["a", "b"]
    assert rows[0]["seeds"] == 2
    assert rows[0]["Overall"] == (pytest.approx(0.6), pytest.approx(0.2828427))
    assert rows[0]["Mean mAP"] == (pytest.approx(0.45), pytest.approx(0.2121320))
    assert rows[1]["Overall"] == (pytest.approx(0.9), None)
    assert summary_rows([run("a", 0, 0.4)], "map50_95")[0]["Overall"] == (pytest.approx(0.1), None)


def test_a_missing_value_is_a_dash_not_a_zero():
    rows = summary_rows([run("joint", 0, 1.0, rai=None, stages=1, joint=True)])
    assert rows[0]["RAI"] is None
    assert summary_markdown(rows).splitlines()[-1] == "| `joint` | 1.000 | – | 0.250 | 0.500 | 0.500 | 0.300 |"
    assert summary_table(rows).row_count == 1


def test_unfinished_and_doubled_runs_are_refused():
    with pytest.raises(ValueError, match="seed 3: finished 1 of 2 stages"):
        summary_rows([run("a", 3, 0.4, stages=1)])
    with pytest.raises(ValueError, match="same seed"):
        summary_rows([run("a", 0, 0.4), run("a", 0, 0.4)])


def test_one_method_with_other_settings_is_a_line_of_its_own_that_says_which():
    runs = [run("a", 0, 0.4), run("a", 1, 0.6), run("a", 0, 0.9), run("b", 0, 0.1)]
    for document, merger in zip(runs, ("duet", "duet", "ties", "duet")):
        document["settings"] = {"method": {"joint": False, "merge": {"name": merger}}, "train": {"epochs": 2}}
    rows = summary_rows(runs)
    assert [row["method"] for row in rows] == ['a (method.merge.name="duet")', 'a (method.merge.name="ties")', "b"]
    assert [row["seeds"] for row in rows] == [2, 1, 1]
    assert rows[0]["Overall"] == (pytest.approx(0.5), pytest.approx(0.1414214))


def test_a_run_from_before_a_setting_is_one_with_the_setting_as_it_was():
    older, newer = run("a", 0, 0.4), run("a", 1, 0.6)
    newer["settings"] = {"method": {"joint": False, "min_steps": None}, "train": {"processes": 1}}
    assert [row["seeds"] for row in summary_rows([older, newer])] == [2]
    newer["settings"]["method"]["min_steps"] = 150
    names = [row["method"] for row in summary_rows([older, newer])]
    assert names == ["a (method.min_steps=null)", "a (method.min_steps=150)"]


def test_many_other_settings_are_cut_short():
    first, second = run("a", 0, 0.4), run("a", 0, 0.6)
    first["settings"]["method"] |= dict.fromkeys("vwxyz", 1)
    second["settings"]["method"] |= dict.fromkeys("vwxyz", 2)
    assert summary_rows([first, second])[1]["method"] == "a (method.v=2, method.w=2, method.x=2, …)"
