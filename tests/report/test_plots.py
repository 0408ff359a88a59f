"""Figures hold the run's numbers and come out as valid PNG and SVG."""

import io
import math
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from fake_run import BLOCKS, make_results
from PIL import Image

from duet.report import plots
from duet.report.figures import HEAT, to_png, to_svg


def all_figures(results):
    tasks = [stage["task"] for stage in results["stages"]]
    return {
        "grid": plots.grid_figure(results),
        "forgetting": plots.forgetting_figure(results),
        "alpha": plots.alpha_figure(results),
        "boxes": plots.old_boxes_figure(results),
        **{f"loss{task}": plots.loss_figure(results, task) for task in tasks},
    }


def lines_by_label(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


@pytest.mark.parametrize("kind", ["results", "odd_results", "joint_results"])
def test_every_figure_is_a_valid_png_and_svg(kind, request):
    before = dict(matplotlib.rcParams)
    drawn = {name: figure for name, figure in all_figures(request.getfixturevalue(kind)).items() if figure}
    assert len(drawn) >= 2
    for name, figure in drawn.items():
        picture = Image.open(io.BytesIO(to_png(figure, dpi=50)))
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 5
        root = ElementTree.fromstring(to_svg(figure, name, "a <picture> & more"))
        assert root.get("aria-label") == "a <picture> & more"
    assert dict(matplotlib.rcParams) == before


def test_svg_follows_the_page_and_shares_no_id(results):
    first = to_svg(plots.grid_figure(results, [1]), "one", "grid")
    second = to_svg(plots.grid_figure(results, [2]), "two", "grid")
    ids = [{node.get("id") for node in ElementTree.fromstring(svg).iter()} - {None} for svg in (first, second)]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    assert "var(--heat)" in first and HEAT not in first
    assert "font-family" not in first and "<style" not in first and "<!DOCTYPE" not in first
    assert "clear" in "".join(ElementTree.fromstring(first).itertext())


def test_svg_keeps_names_as_text(odd_results):
    texts = list(ElementTree.fromstring(to_svg(plots.forgetting_figure(odd_results), "f", "")).itertext())
    assert any("自転車, $x^2$ & y · 雪" in text for text in texts)


def test_grid_writes_the_values_and_hatches_what_is_not_learned(results):
    figure = plots.grid_figure(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Task 1 · clear · 0 1 2",
        "Task 2 · night · 3 4 5",
        "Task 3 · fog · 6 7",
        "Task 4 · comic · 8 9",
    ]
    second = figure.axes[1]
    texts = {tuple(text.get_position()): text.get_text() for text in second.texts}
    assert texts[0, 0] == "0.82"
    assert texts[1, 1] == "0.85"
    assert texts[0, 3] == "0.38"
    assert len(texts) == 8
    assert sum(patch.get_hatch() is not None for patch in second.patches) == 8
    framed = [patch.get_xy() for patch in second.patches if not patch.get_fill()]
    assert framed == [pytest.approx((-0.44, -0.44)), pytest.approx((0.56, 0.56))]


def test_grid_has_one_colour_scale_for_all_panels(results):
    figure = plots.grid_figure(results, [1, 4])
    shades = [axes.patches[0].get_alpha() for axes in figure.axes]
    assert shades == pytest.approx([0.06 + 0.94 * 0.8909, 0.06 + 0.94 * 0.6898])


def test_grid_shows_a_dash_without_test_boxes_and_hatches_nothing_of_a_joint_run(odd_results, joint_results):
    assert [text.get_text() for text in plots.grid_figure(odd_results, [1]).axes[0].texts] == ["0.89", "–"]
    joint = plots.grid_figure(joint_results).axes[0]
    assert len(joint.texts) == 16
    assert not any(patch.get_hatch() or not patch.get_fill() for patch in joint.patches)


def test_forgetting_starts_each_line_at_its_own_task(results):
    lines = plots.forgetting_figure(results).axes[0].lines
    assert [list(line.get_xdata()) for line in lines] == [[1, 2, 3, 4], [2, 3, 4], [3, 4], [4]]
    # clear[0 1 2]: 0.93, 0.86, 0.79 and 0.72 of the joint model's 0.958.
    assert list(lines[0].get_ydata()) == [0.8909, 0.8239, 0.7568, 0.6898]


def test_names_at_the_ends_never_overlap(results):
    for stage in results["stages"]:
        for item in stage["slices"]:
            item["map50"] = 0.5
    axes = plots.forgetting_figure(results).axes[0]
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert len(heights) == 4
    assert min(np.diff(heights)) == pytest.approx(0.075)
    assert sum(heights) / 4 == pytest.approx(0.5)


def test_losses_are_dashed_when_weighted_and_share_the_colour(results):
    figure = plots.loss_figure(results, 2)
    lines = lines_by_label(figure)
    assert set(lines) == {
        *("box", "cls", "dfl", "distillation", "distillation weighted"),
        *("directional", "directional weighted"),
    }
    plain, weighted = lines["distillation"], lines["distillation weighted"]
    assert (plain.get_linestyle(), weighted.get_linestyle()) == ("-", "--")
    assert plain.get_color() == weighted.get_color() != lines["box"].get_color()
    assert plain.get_color() != lines["directional"].get_color()
    assert list(plain.get_ydata()) == [epoch["distillation"] for epoch in results["stages"][1]["losses"]]
    assert figure.axes[0].get_yscale() == "log"
    assert plots.loss_figure(results, 1).axes[0].get_yscale() == "linear"


def test_weighted_loss_finds_the_colour_of_a_name_that_ends_in_loss(results):
    results["stages"][0]["losses"] = [{"box_loss": 1.0, "dc_loss": 0.4, "dc_weighted": 0.2, "cls_loss": 2.0}]
    lines = lines_by_label(plots.loss_figure(results, 1))
    assert lines["dc loss"].get_color() == lines["dc weighted"].get_color()
    assert len({line.get_color() for line in lines.values()}) == 3


def test_loss_that_is_absent_in_an_epoch_is_a_gap(results):
    results["stages"][0]["losses"][2]["box"] = None
    del results["stages"][0]["losses"][3]["box"]
    values = lines_by_label(plots.loss_figure(results, 1))["box"].get_ydata()
    assert [math.isnan(value) for value in values] == [False, False, True, True, False, False, False, False]


def test_alpha_has_one_line_per_merge_over_the_layers_in_order(results):
    axes = plots.alpha_figure(results).axes[0]
    merged = [line for line in axes.lines if len(line.get_ydata()) == len(BLOCKS)]
    assert [line.get_label() for line in merged] == [
        "Task 2 · night · 3 4 5",
        "Task 3 · fog · 6 7",
        "Task 4 · comic · 8 9",
    ]
    alpha = results["stages"][2]["merge"]["alpha"]
    assert list(merged[1].get_ydata()) == [alpha[layer] for layer in BLOCKS]
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["0", "1", "2"]
    assert list(axes.get_xticks())[:3] == [0, 3, 6]


def test_alpha_that_is_absent_for_a_layer_is_a_gap(results):
    del results["stages"][3]["merge"]["alpha"][BLOCKS[5]]
    line = plots.alpha_figure(results).axes[0].lines[2]
    assert [place for place, value in enumerate(line.get_ydata()) if math.isnan(value)] == [5]


def test_old_boxes_are_stacked_to_one(results):
    results["stages"] = results["stages"][:2]
    for row in results["stages"][1]["background"]:
        # Class 0 counts for three quarters of each sum.
        row |= {"boxes": 0, "found": 0, "wrong_class": 0, "missed": 0}
        if row["class"] == "0":
            row |= {"boxes": 30, "found": 18, "wrong_class": 3, "missed": 9}
        if row["class"] == "1":
            row |= {"boxes": 10, "found": 2, "wrong_class": 1, "missed": 7}
    axes = plots.old_boxes_figure(results).axes[0]
    bars = [(patch.get_x(), patch.get_width()) for patch in axes.patches]
    # In clear 20 of 40 found and 4 misnamed; the same in each of the three other domains.
    assert bars == [pytest.approx(bar) for bar in [(0, 0.5), (0.5, 0.1), (0.6, 0.4)] * 2]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0 1 2 · clear", "0 1 2 · other domains"]
    assert [text.get_text() for text in axes.texts] == ["After task 2", "40 boxes", "120 boxes"]


def test_what_a_run_does_not_have_is_not_drawn(joint_results):
    one = make_results(stages=1)
    for results in (one, joint_results):
        assert plots.forgetting_figure(results) is None
        assert plots.alpha_figure(results) is None
        assert plots.old_boxes_figure(results) is None
    for stage in one["stages"]:
        stage |= {"grid": [], "losses": []}
    assert plots.grid_figure(one) is None
    assert plots.loss_figure(one, 1) is None
