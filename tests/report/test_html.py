"""report.html is one valid page that loads nothing, shows every index and escapes every name."""

import base64
import io
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_run import ODD_TASKS, TASKS, add_intervals, make_joint_results, make_odd_results, make_results, make_scenes
from PIL import Image

from duet.report.drawing import DrawnBox, ScenePanel
from duet.report.html import render_report, write_report

VOID = {"meta", "img", "br", "link", "input", "hr"}
INDEX_TITLES = {
    **{"Overall": "overall", "RAI": "rai", "RAI, capped": "rai_capped", "NI": "ni", "Avg RI": "avg_ri"},
    **{"Avg GI": "avg_gi", "Avg GI, capped": "avg_gi_capped", "Forgetting": "forgetting", "BWT": "bwt", "FWT": "fwt"},
}


class Page(HTMLParser):
    """Reads a page strictly: every element is closed where it should be; tables, loads and text are kept."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.loads, self.text, self.rows, self.images = [], set(), [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.add(tag)
        self.loads += [values[name] for name in ("src", "href", "xlink:href", "srcset", "data") if name in values]
        if tag == "img":
            self.images.append(values)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" in self.open or "script" in self.open:
            return
        self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(per_domain=1)


@pytest.fixture(scope="module")
def rendered(scenes):
    """Results and page of a whole run, an odd one and a joint one; for tests that only read them."""
    runs = {"full": make_results(), "odd": make_odd_results(), "joint": make_joint_results()}
    panels = {"full": scenes, "odd": make_scenes(ODD_TASKS, per_domain=1), "joint": scenes}
    return {kind: (run, render_report(run, panels[kind], date="14 June 2025")) for kind, run in runs.items()}


@pytest.fixture
def small():
    """A run of one task, which is quick to render."""
    return make_results(TASKS[:1])


@pytest.mark.parametrize("kind", ["full", "odd", "joint"])
def test_page_is_valid_and_loads_nothing(kind, rendered):
    text = rendered[kind][1]
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert "script" not in page.tags and "link" not in page.tags
    assert page.loads and all(load.startswith(("#", "data:image/jpeg;base64,")) for load in page.loads)
    assert "url(http" not in text and "@import" not in text
    assert "14 June 2025" in page.text


@pytest.mark.parametrize("metric,column", [("map50", 1), ("map50_95", 2)])
@pytest.mark.parametrize("kind", ["full", "odd", "joint"])
def test_every_index_is_printed(kind, metric, column, rendered):
    results, text = rendered[kind]
    rows = {row[0]: row for row in Page(text).rows if row}
    for title, key in INDEX_TITLES.items():
        value = results["indices"][metric][key]
        assert rows[title][column] == ("–" if value is None else f"{value:.3f}"), title


def test_tiles_show_the_five_headline_numbers(rendered):
    results, text = rendered["full"]
    tiles = text[text.index('<section class="tiles"') :]
    tiles = tiles[: tiles.index("</section>")]
    for key in ("overall", "rai", "ni", "avg_ri", "avg_gi"):
        assert f'<p class="value">{results["indices"]["map50"][key]:.3f}</p>' in tiles
    assert tiles.count('<p class="meaning">') == 5
    assert f"{results['indices']['map50_95']['overall']:.3f} at mAP50-95" in tiles
    assert "capped at 1" not in tiles


def test_capped_value_stands_beside_a_raw_one_above_it(small):
    small["indices"]["map50"] |= {"avg_gi": 1.25, "avg_gi_capped": 0.98}
    text = render_report(small, [])
    assert "1.250" in text and "0.980 capped at 1" in text
    assert 'style="width:125' not in text


def test_slices_of_every_stage_are_listed(rendered):
    rows = Page(rendered["full"][1]).rows
    assert ["old", "clear[0 1 2]", "0.824", "0.734", "150", "1\u202f211", "0.891 task 1", "0.925"] in rows
    assert sum(row[0] in ("new", "old", "unseen") for row in rows if len(row) == 8) == 1 + 4 + 6 + 8


def test_names_are_escaped(rendered):
    text = rendered["odd"][1]
    page = Page(text)
    joined = "".join(page.text)
    assert '<script>alert("&")</script>' in joined
    assert "<b>bus</b>" in joined
    assert "自転車" in joined and "$x^2$ & y" in joined
    assert "<script" not in text and "<b>bus" not in text


def test_scenes_have_three_columns_of_embedded_pictures(rendered):
    page = Page(rendered["full"][1])
    assert len(page.images) == 4 * 3
    joined = " ".join(page.text)
    assert joined.count("Ground truth") == joined.count("At the end") == 4
    assert joined.count("After task 1") == 4
    for image in page.images:
        data = base64.b64decode(image["src"].split(",", 1)[1])
        assert Image.open(io.BytesIO(data)).size == (int(image["width"]), int(image["height"])) == (480, 480)


def test_run_of_one_stage_has_no_middle_column(rendered, small, scenes):
    for text in (rendered["joint"][1], render_report(small, scenes)):
        page = Page(text)
        assert len(page.images) == 4 * 2
        assert not any(image["alt"].startswith("After") for image in page.images)


def test_captions_count_what_was_found_missed_and_false():
    results = make_results(TASKS[:2])
    truth = [DrawnBox((5, 5, 30, 30), "0"), DrawnBox((40, 40, 70, 70), "5")]
    ghost = DrawnBox((80, 80, 95, 95), "3", 0.5)
    hit = DrawnBox((40, 40, 70, 70), "5", 0.8)
    panel = ScenePanel("fog", np.zeros((100, 100, 3), np.uint8), truth, [], [hit, ghost])
    page = Page(render_report(results, [panel]))
    # After task 1 class 5 is not taught yet: it is not missed.
    assert [image["alt"] for image in page.images] == [
        "Ground truth: 2 objects",
        "After task 1: 0 of 1 found",
        "At the end: 1 of 2 found, 1 false",
    ]


def test_empty_detections_and_empty_scenes_work(small):
    blank = ScenePanel("night", np.zeros((30, 60, 3), np.uint8), [], [], [])
    page = Page(render_report(small, [blank]))
    assert page.images[0]["alt"] == "Ground truth: 0 objects"
    assert page.images[1]["alt"] == "At the end: nothing it was taught"
    assert Page(render_report(small, [])).images == []


def test_unfinished_run_says_so(rendered, scenes):
    text = render_report(make_results(TASKS[:3], stages=2), scenes[:1])
    assert "2 of 3 tasks are done" in text
    headings = [image["alt"].split(":")[0] for image in Page(text).images]
    assert headings == ["Ground truth", "After task 1", "After task 2"]
    assert not any("tasks are done" in text for _, text in rendered.values())


def test_every_stage_has_its_costs(small):
    rows = Page(render_report(small, [])).rows
    assert [row[-1] for row in rows if len(row) == 6 and row[-1] == "1201"] == ["1201"]


def test_settings_and_versions_are_folded_in(small):
    small["settings"]["names"] = ["a", "b"]
    page = Page(render_report(small, []))
    assert "details" in page.tags
    for row in (
        ["train.epochs", "8"],
        ["train.optimizer.lr", "0.001"],
        ["head", "rows"],
        ["notes", ""],
        ["names", "a, b"],
        ["torch", "2.8.0"],
    ):
        assert row in page.rows


def test_skipped_terms_are_named(rendered):
    text = "".join(Page(rendered["odd"][1]).text)
    assert "NI cannot be computed: no reference." in text


def test_absent_parts_leave_no_empty_section(small):
    text = render_report(small, [])
    for part in ('id="forgetting"', 'id="merging"', 'id="scenes"', "#forgetting", "#merging", "#scenes"):
        assert part not in text
    assert 'id="grid"' in text and 'id="training"' in text


def test_report_is_written_whole_and_small(results, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(results, make_scenes(per_domain=4), path)
    assert path.stat().st_size < 6_000_000
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_failed_report_leaves_the_old_one(small, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    del small["series"]
    with pytest.raises(KeyError):
        write_report(small, [], path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_results_are_not_changed(rendered):
    assert rendered["full"][0] == make_results()
    assert rendered["odd"][0] == make_odd_results()


def test_intervals_stand_on_the_tiles_and_beside_every_index(small):
    assert "interval" not in render_report(small, []).split("</style>")[1].lower()
    overall = small["indices"]["map50"]["overall"]
    text = render_report(add_intervals(small), [])
    rows = {row[0]: row for row in Page(text).rows if row}
    interval = f"[{overall - 0.02:.3f}, {overall + 0.04:.3f}]"
    assert rows["Overall"][1] == f"{overall:.3f} {interval}"
    assert f'<p class="interval">{interval}</p>' in text
    assert text.count('<p class="interval">') == 1  # one task has no other index
    assert "95 %, from 1000 resamples of the test images" in text


def test_objects_of_no_task_are_neither_drawn_nor_counted():
    results, black = make_results(TASKS[:1]), np.zeros((100, 100, 3), np.uint8)
    of_the_task, other = DrawnBox((5, 5, 30, 30), "0"), DrawnBox((40, 40, 70, 70), "tree")
    pages = [
        Page(render_report(results, [ScenePanel("clear", black, truth)]))
        for truth in ([of_the_task], [of_the_task, other])
    ]
    assert pages[0].images[0]["alt"] == pages[1].images[0]["alt"] == "Ground truth: 1 object"
    assert pages[0].images[0]["src"] == pages[1].images[0]["src"]
