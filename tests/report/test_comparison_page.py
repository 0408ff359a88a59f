"""compare.html is one valid page that loads nothing, shows every method and escapes every name."""

import json

import numpy as np
import pytest
from fake_grid import failed_run, make_grid_runs, write_replicates
from fake_run import ODD_TASKS, TASKS, make_scenes
from test_html import Page

from duet.report.comparison import ComparedRun, ComparedScene, compare_rows, write_comparison
from duet.report.comparison_page import render_comparison, table_lines
from duet.report.comparison_parts import class_panels, fate_bars, heat_maps, settings_table

LABELS = ("lwf", "duet", "frozen", "replay")


def make_compared_scenes(labels=LABELS, series="demo"):
    """One scene per domain, which the first method sees empty and the others in full."""
    scenes = []
    for scene in make_scenes(per_domain=1):
        found = {label: [] if label == labels[0] else list(scene.ground_truth) for label in labels}
        scenes.append(ComparedScene(series, "yolo11n", scene.domain, scene.image_rgb, scene.ground_truth, found, 0))
    return scenes


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    found = make_grid_runs(LABELS, seeds=(0, 1), name="pascal-four", root=tmp_path_factory.mktemp("grid"))
    for run in found:
        write_replicates(run)
    return [*found, failed_run("duet", 2, "pascal-four")]


@pytest.fixture(scope="module")
def text(runs):
    return render_comparison(
        compare_rows(runs), make_compared_scenes(series="pascal-four"), "All & everything", "1 May"
    )


def test_page_is_valid_and_loads_nothing(text):
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert all(load.startswith(("#", "data:")) for load in page.loads)
    assert "url(http" not in text and "@import" not in text and "fetch(" not in text
    assert "All & everything" in page.text and "1 May" in page.text
    targets = [load[1:] for load in page.loads if load.startswith("#")]
    assert targets and all(f'id="{target}"' in text for target in targets)


def test_headline_names_the_leader_and_the_noise(text):
    joined = " ".join(" ".join(Page(text).text).split())
    assert "duet leads in Overall" in joined
    assert "is larger than the noise." in joined


def test_table_has_every_method_and_the_published_rows(runs):
    lines = table_lines(compare_rows(runs)[0])
    assert [line.label for line in lines[:3]] == ["duet", "lwf", "frozen"]  # by falling Overall
    assert [line.kind for line in lines[3:5]] == ["joint", "exemplars"]
    published = lines[5:]
    assert [line.label for line in published] == ["Seq FT", "LwF", "ERD", "DuET"]
    cells = dict(zip(("overall", "rai", "ni", "avg_ri", "avg_gi"), published[3].cells))
    assert [cells[key].text for key in cells] == ["–", "0.659", "–", "0.893", "0.426"]
    assert cells["rai"].spread == "± 0.002" and cells["overall"].value is None
    assert lines[0].seeds == "2 of 3"
    assert not any(line.kind == "published" for line in table_lines(compare_rows(runs)[0], "map50_95"))


def test_only_the_best_exemplar_free_method_is_bold(runs):
    lines = table_lines(compare_rows(runs)[0])
    overall = [line.cells[0] for line in lines]
    assert [cell.best for cell in overall[:5]] == [True, False, False, False, False]
    assert all(cell.interval.startswith("[") for cell in overall[:5])


def test_curves_start_with_the_task_that_taught_the_class(runs):
    block = compare_rows(runs)[0]
    panels = {panel.name: panel for panel in class_panels(block)}
    assert list(panels) == [str(number) for number in range(10)]
    assert {panel.name: panel.task for panel in panels.values()}["7"] == 3
    curve = next(curve for curve in panels["3"].curves if curve.look.label == "lwf")
    assert len(curve.parts[0].split()) == 3  # after tasks 2, 3 and 4
    # Joint would be a line across; the leader is drawn last, on top.
    assert [curve.look.label for curve in panels["3"].curves] == ["replay", "frozen", "lwf", "duet"]
    row = next(row for row in block.rows if row.label == "lwf")
    cells = [
        cell["ap50"]
        for results in row.results
        for cell in results["stages"][-1]["class_ap"]
        if (cell["class"], cell["domain"]) == ("3", "night")
    ]
    assert curve.text.endswith(f"→ {sum(cells) / 2:.2f}")


def test_grids_are_means_over_seeds(runs):
    block = compare_rows(runs)[0]
    maps = {item.label: item for item in heat_maps(block)}
    assert set(maps) == {*LABELS, "joint"}
    domain, cells = maps["duet"].rows[1]
    values = [
        next(c["map50"] for c in r["stages"][-1]["grid"] if (c["domain"], c["task"]) == ("night", 3))
        for r in next(row for row in block.rows if row.label == "duet").results
    ]
    assert domain == "night" and cells[2].value == pytest.approx(sum(values) / 2)
    assert [cell.trained for cell in cells] == [False, True, False, False]
    assert not any(cell.trained for _, row in maps["joint"].rows for cell in row)


def test_fates_are_shares_of_the_old_boxes(runs):
    bars = fate_bars(compare_rows(runs)[0], own=True)
    assert [bar.label for bar in bars] == [
        "duet",
        "lwf",
        "frozen",
        "replay",
    ]  # the fake joint run tells nothing of its boxes
    assert all(bar.found + bar.wrong_class + bar.missed == pytest.approx(1) for bar in bars)
    assert {bar.boxes for bar in bars} == {8 * 140}  # classes 0 … 7 in their own domains


def test_settings_are_parted_into_shared_and_own():
    runs = make_grid_runs(("duet", "lwf"), seeds=(0,), tasks=TASKS[:2])
    runs[0].results["settings"] |= {"merger": "duet", "seed": 0}
    runs[1].results["settings"] |= {"merger": None, "seed": 1}
    shared, own = settings_table(compare_rows(runs[:2])[0])
    assert ("train.epochs", "8") in shared
    assert own == [("duet", [("merger", "duet")])]


def test_pictures_show_every_method(text):
    page = Page(text)
    captions = [image["alt"] for image in page.images]
    assert len(captions) == 4 * 5  # ground truth and the four methods with detections, in each domain
    assert any(caption.startswith("lwf: 0 of ") for caption in captions)
    assert captions[0].startswith("Ground truth:") and captions[1].startswith("duet:")


def test_failures_stand_with_their_last_lines(text):
    joined = "".join(Page(text).text)
    assert "duet, seed 2 failed" in joined and 'File "x.py", line 3, in <module>' in joined
    assert "<module>" not in text


def test_names_are_escaped():
    runs = make_grid_runs(("duet", "lwf"), seeds=(0,), tasks=ODD_TASKS, name="<script>alert(1)</script>")
    object.__setattr__(runs[0], "label", "<b>x</b>")
    text = render_comparison(compare_rows(runs), [], "</title><script>alert(2)</script>")
    Page(text)
    assert text.count("<script>") == 1 and "<b>bus" not in text and "<b>x</b>" not in text


def test_two_blocks_have_two_sets_of_sections(runs):
    other = [ComparedRun(r.series, "rtdetr-l", r.label, r.seed, r.status, r.folder, r.results) for r in runs[:4]]
    text = render_comparison(compare_rows([*runs, *other]), [], "two")
    Page(text)
    for part in ("b1-table", "b2-table", "b1-plot", "b2-plot"):
        assert text.count(f'id="{part}"') == 1


def test_grid_without_a_finished_run_still_has_a_page(tmp_path):
    pending = ComparedRun("demo", "yolo11n", "lwf", 0, "pending", tmp_path)
    write_comparison([failed_run(log_tail=()), pending], tmp_path / "out", "nothing yet")
    page = Page((tmp_path / "out" / "compare.html").read_text())
    joined = " ".join(page.text)
    assert "No exemplar-free method has finished" in joined and "erd, seed 3 failed" in joined
    assert "0 finished, 1 failed, 1 to come" in joined


def test_all_files_are_written_and_agree(runs, tmp_path):
    blocks = write_comparison(runs, tmp_path / "out", "all")
    names = ["compare.html", "compare.json", "table.csv", "table.md", "table.tex"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    document = json.loads((tmp_path / "out" / "compare.json").read_text())
    block = document["blocks"][0]
    duet = next(row for row in block["rows"] if row["label"] == "duet")
    assert duet["indices"]["map50"]["overall"]["mean"] == blocks[0].rows[1].mean("overall")
    assert duet["failed"][0]["seed"] == 2
    assert block["leader"] == "duet" and block["index"] == "overall"
    first = next(item for item in block["differences"] if (item["first"], item["second"]) == ("duet", "lwf"))
    assert first["larger_than_noise"] is True and first["low"] > 0


def test_nothing_is_written_of_bad_input(runs, tmp_path):
    with pytest.raises(ValueError, match="comparison 'none': there is no run"):
        write_comparison([], tmp_path / "out", "none")
    with pytest.raises(ValueError, match="same seed"):
        write_comparison([*runs, runs[0]], tmp_path / "out", "twice")
    assert not (tmp_path / "out").exists()


def test_scene_of_a_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"scene of 'fog': expected \(H, W, 3\) uint8, got \(4, 4\) uint8"):
        ComparedScene("demo", "yolo11n", "fog", np.zeros((4, 4), np.uint8), [], {"duet": []}, 0)
