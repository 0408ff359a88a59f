"""The terminal tables and results.csv hold the run's own numbers; expected values worked out from fake_run's rule."""

import csv
import io
import re

import pytest
from fake_run import add_intervals, make_results
from rich.console import Console

from duet.report.tables import grid_table, indices_table, results_csv, stage_table


def text_of(table, width=160):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(table)
    return console.file.getvalue()


def rows_of(table, **options):
    """The cells of each printed line, split where two spaces stand."""
    return [re.split(r"\s{2,}", line.strip()) for line in text_of(table, **options).splitlines() if line.strip()]


def csv_lines(results):
    return list(csv.DictReader(io.StringIO(results_csv(results))))


def test_stage_table_compares_old_with_its_task_and_the_rest_with_the_reference(results):
    lines = rows_of(stage_table(results, 2))
    assert lines[0] == ["Task 2 · night · 3 4 5"]
    assert lines[1] == ["Role", "Slice", "mAP50", "mAP50-95", "Images", "Boxes", "Reference", "Ratio"]
    # joint model: 0.97 - 0.03 * domain - 0.012 * task; after the stage 0.93, one stage later 0.86 of it.
    assert lines[3] == ["new", "night[3 4 5]", "0.852", "0.774", "150", "1\u202f211", "0.916 joint", "0.930"]
    assert lines[4] == ["old", "clear[0 1 2]", "0.824", "0.734", "150", "1\u202f211", "0.891 task 1", "0.925"]
    # one domain away 0.59 of the joint model's, and 0.07 less one stage later.
    assert lines[5][:3] == ["unseen", "clear[3 4 5]", "0.558"]
    assert lines[5][6:] == ["0.946 joint", "0.590"]
    assert lines[6][:3] == ["unseen", "night[0 1 2]", "0.483"]
    assert lines[6][6:] == ["0.928 joint", "0.520"]
    assert len(lines) == 7


def test_stage_table_prints_a_dash_for_what_is_absent_and_escapes_markup(odd_results):
    odd_results["stages"][1]["slices"][3]["classes"] = ["<b>bus</b>"]
    odd_results["series"]["tasks"][0]["domain"] = "[red]x[/red]"
    odd_results["stages"][1]["slices"][2]["domain"] = "[red]x[/red]"
    lines = rows_of(stage_table(odd_results, 2))
    assert lines[0] == ["Task 2 · 雪 · 自転車, $x^2$ & y"]
    assert lines[5][1] == "[red]x[/red][自転車 $x^2$ & y]"
    assert lines[6] == ["unseen", "雪[<b>bus</b>]", "–", "–", "150", "1\u202f211", "–", "–"]


def test_ratio_is_absent_when_the_reference_is_zero(results):
    results["reference"]["slices"][0]["map50"] = 0.0
    first = results["reference"]["slices"][0]
    assert (first["domain"], first["classes"]) == ("night", ["3", "4", "5"])
    assert rows_of(stage_table(results, 2))[3][6:] == ["0.000 joint", "–"]


def test_unknown_stage_is_refused(results):
    with pytest.raises(KeyError, match=r"stages \[1, 2, 3, 4\], not 5"):
        stage_table(results, 5)


def test_grid_table_marks_classes_that_are_not_learned_yet(results):
    lines = rows_of(grid_table(results, 2))
    assert lines[1] == ["Domain", "0 1 2", "3 4 5", "6 7", "8 9"]
    assert lines[3:] == [
        ["clear", "0.824", "0.558", "·", "·"],
        ["night", "0.483", "0.852", "·", "·"],
        ["fog", "0.431", "0.523", "·", "·"],
        ["comic", "0.382", "0.471", "·", "·"],
    ]


def test_grid_table_shows_the_last_stage_unless_told_and_every_cell_of_a_joint_run(results, joint_results):
    assert text_of(grid_table(results)) == text_of(grid_table(results, 4))
    lines = rows_of(grid_table(joint_results))
    assert lines[0] == ["mAP50 by domain and classes · All tasks at once"]
    assert lines[3] == ["clear", "0.958", "0.946", "0.934", "0.922"]


def test_indices_table_prints_every_index_of_both_metrics(results):
    lines = {line[0]: line[1:] for line in rows_of(indices_table(results))}
    narrow, wide = results["indices"]["map50"], results["indices"]["map50_95"]
    # Avg RI: 0.72, 0.79 and 0.86 of the joint model are left of 0.93, three, two and one stages later.
    assert lines["Avg RI"] == ["0.849", f"{wide['avg_ri']:.3f}", "ratio"]
    assert lines["NI"] == ["0.930", f"{wide['ni']:.3f}", "ratio"]
    for title, key in (("Overall", "overall"), ("RAI", "rai"), ("RAI, capped", "rai_capped"), ("Avg GI", "avg_gi")):
        assert lines[title] == [f"{narrow[key]:.3f}", f"{wide[key]:.3f}", "ratio"]
    for title in ("Forgetting", "BWT", "FWT"):
        assert lines[title] == [f"{narrow[title.lower()]:.3f}", f"{wide[title.lower()]:.3f}", "mAP"]
    assert lines["Sign conflict, task 2"] == ["0.410", "share"]
    assert lines["Sign conflict, task 4"] == ["0.510", "share"]


def test_indices_table_tells_what_was_left_out(odd_results):
    text = " ".join(text_of(indices_table(odd_results)).split())
    assert "NI cannot be computed: no reference." in text
    assert "Overall cannot be computed: no joint model's mAP." in text
    assert ["Overall", "–", "–", "ratio"] in rows_of(indices_table(odd_results))
    assert ["Sign conflict, task 2", "–", "share"] in rows_of(indices_table(odd_results))


def test_indices_table_names_the_terms_that_a_mean_lacks(results):
    for metric in ("map50", "map50_95"):
        block = results["indices"][metric]
        block["skipped"] = [
            {"index": "gi", "task": task, "domain": "fog", "classes": ["6", "7"], "reason": "reference is 0"}
            for task in (2, 3, 4, 5)
        ]
    text = " ".join(text_of(indices_table(results)).split())
    slices = "fog[6 7] after task 2, fog[6 7] after task 3, fog[6 7] after task 4 and 1 more"
    assert f"Avg GI leaves out {slices}: reference is 0." in text


def test_stage_table_of_a_joint_run_lists_its_grid(joint_results):
    lines = rows_of(stage_table(joint_results, 0))
    assert lines[0] == ["All tasks at once"]
    assert len(lines) == 3 + 16
    assert lines[4] == ["joint", "clear[3 4 5]", "0.946", "0.915", "–", "–", "0.946 joint", "1.000"]


def test_indices_table_says_when_the_run_is_unfinished(results, joint_results):
    assert "unfinished: 2 of 4 tasks" in text_of(indices_table(make_results(stages=2)))
    assert "unfinished" not in text_of(indices_table(results)) + text_of(indices_table(joint_results))


def test_small_negative_zero_is_printed_as_zero(results):
    results["indices"]["map50"]["bwt"] = -0.0001
    assert ["BWT", "0.000", f"{results['indices']['map50_95']['bwt']:.3f}", "mAP"] in rows_of(indices_table(results))


def test_csv_is_tidy_and_complete(results):
    lines = csv_lines(results)
    assert list(lines[0]) == ["stage", "kind", "role", "domain", "classes", "metric", "value", "low", "high"]
    assert {
        **{"stage": "2", "kind": "slice", "role": "old", "domain": "clear", "classes": "0|1|2"},
        **{"metric": "map50", "value": "0.8239", "low": "", "high": ""},
    } in lines
    slices = [line for line in lines if line["kind"] == "slice"]
    assert len(slices) == (1 + 4 + 6 + 8) * 4
    assert len([line for line in lines if line["kind"] == "grid"]) == 4 * 16 * 2
    means = {(line["role"], line["metric"]): line["value"] for line in lines if line["kind"] == "index"}
    assert float(means["overall", "map50"]) == results["indices"]["map50"]["overall"]
    assert float(means["rai", "map50_95"]) == results["indices"]["map50_95"]["rai"]
    assert len(means) == 11 * 2
    terms = [line for line in lines if line["kind"] == "term" and line["metric"] == "map50"]
    assert [line["role"] for line in terms] == ["ri"] * 3 + ["gi"] * 9
    assert [line["value"] for line in lines if line["kind"] == "merge"] == ["0.41", "0.46", "0.51"]


def test_csv_leaves_absent_values_empty_and_keeps_odd_names(odd_results):
    lines = csv_lines(odd_results)
    unseen = [line for line in lines if line["kind"] == "slice" and line["domain"] == "雪" and line["role"] == "unseen"]
    assert unseen[0]["classes"] == "Füßgänger|<b>bus</b>|traffic light"
    assert [line["value"] for line in unseen] == ["", "", "150", "1211"]
    assert [line["value"] for line in lines if line["role"] == "overall"] == ["", ""]


def test_csv_of_a_joint_run_and_of_one_task(joint_results):
    roles = {line["role"] for line in csv_lines(joint_results) if line["kind"] == "index" and line["value"]}
    assert roles == {"overall", "mean_map"}
    assert {line["stage"] for line in csv_lines(make_results(stages=1))} == {"1"}


def test_intervals_stand_beside_the_indices(results):
    plain = rows_of(indices_table(results))
    overall = results["indices"]["map50"]["overall"]
    results["indices"]["map50"]["bwt"] = -0.1
    lines = rows_of(indices_table(add_intervals(results, absent={"ni": 7})))
    assert lines[1] == ["Index", "mAP50", "95 %", "mAP50-95", "95 %", "Unit"]
    assert plain[1] == ["Index", "mAP50", "mAP50-95", "Unit"]
    row = next(line for line in lines if line[0] == "Overall")
    assert row[1:3] == [f"{overall:.3f}", f"[{overall - 0.02:.3f}, {overall + 0.04:.3f}]"]
    assert next(line for line in lines if line[0] == "BWT")[2] == "[-0.120, -0.060]"
    assert next(line for line in lines if line[0] == "Mean mAP")[2].startswith("[0.")
    assert next(line for line in lines if line[0] == "Sign conflict, task 2")[1:] == ["0.410", "share"]
    text = " ".join(text_of(indices_table(results)).split())
    assert "95 %, from 1000 resamples of the test images" in text
    assert "NI: 7 of 1000 resamples have no value and are not in its interval." in text


def test_an_index_without_a_value_has_no_interval(joint_results):
    lines = rows_of(indices_table(add_intervals(joint_results)))
    assert next(line for line in lines if line[0] == "RAI") == ["RAI", "–", "–", "ratio"]


def test_csv_has_both_ends_of_every_interval(results):
    lines = csv_lines(add_intervals(results))
    for line in lines:
        if line["metric"] in ("images", "boxes", "sign_conflict_rate"):
            assert (line["low"], line["high"]) == ("", "")
        else:
            assert float(line["low"]) == pytest.approx(float(line["value"]) - 0.02)
            assert float(line["high"]) == pytest.approx(float(line["value"]) + 0.04)
