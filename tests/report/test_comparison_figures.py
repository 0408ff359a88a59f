"""RAI against Overall: a mark per method, error bars, and labels that never lie on each other."""

from itertools import combinations

import pytest
from fake_grid import METHODS, make_grid_runs, write_replicates
from fake_run import TASKS
from matplotlib.text import Annotation

from duet.report.comparison_figures import error_of, labels_of, marks_of, overall_figure
from duet.report.comparison_noise import Estimate
from duet.report.comparison_rows import compare_rows


def overlap(first, second):
    return min(first.x1, second.x1) > max(first.x0, second.x0) and min(first.y1, second.y1) > max(first.y0, second.y0)


def crowd(count):
    """Methods that all stand within a hair of each other, with long names."""
    runs = []
    for place in range(count):
        for run in make_grid_runs(("duet",), seeds=(place, place + 100), tasks=TASKS[:2]):
            if run.label == "duet":
                object.__setattr__(run, "label", f"duet+merger-{place}")
                runs.append(run)
    return compare_rows(runs)[0]


@pytest.mark.parametrize("size", [(9.6, 4.9), (3.5, 3.9)])
def test_labels_of_all_methods_do_not_collide(size):
    block = compare_rows(make_grid_runs(tuple(METHODS), seeds=(0, 1), tasks=TASKS[:2]))[0]
    figure = overall_figure(block, size)
    boxes = labels_of(figure)
    assert len(boxes) == len(METHODS)
    assert not any(overlap(*pair) for pair in combinations(boxes, 2))


def test_labels_of_a_crowd_do_not_collide_and_stay_inside():
    figure = overall_figure(crowd(12), (9.6, 4.9))
    boxes, frame = labels_of(figure), figure.axes[0].get_window_extent()
    assert len(boxes) == 12
    assert not any(overlap(*pair) for pair in combinations(boxes, 2))
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    # With a line to the mark where the name is far from it.
    texts = [child for child in figure.axes[0].get_children() if isinstance(child, Annotation)]
    assert any(text.arrow_patch.get_visible() for text in texts)


def test_collision_would_be_seen():
    figure = overall_figure(crowd(12), (9.6, 4.9))
    for text in figure.axes[0].get_children():
        if isinstance(text, Annotation):
            text.set_position((0, 10))
    assert any(overlap(*pair) for pair in combinations(labels_of(figure), 2))


def test_marks_stand_at_the_means():
    block = compare_rows(make_grid_runs(("duet", "replay"), seeds=(0, 1), tasks=TASKS[:2]))[0]
    marks = {mark.label: mark for mark in marks_of(block)}
    assert set(marks) == {"duet", "replay"}  # a joint run has no RAI
    assert marks["duet"].overall.mean == block.rows[0].mean("overall")
    assert (marks["duet"].hollow, marks["replay"].hollow) == (False, True)


def test_error_bar_is_the_interval_or_else_the_deviation(tmp_path):
    assert error_of(Estimate(0.5, 0.1, 0.3, 0.9, (0.5,))) == pytest.approx((0.2, 0.4))
    assert error_of(Estimate(0.5, 0.1, None, None, (0.4, 0.6))) == (0.1, 0.1)
    assert error_of(Estimate(0.5, None, None, None, (0.5,))) is None
    runs = make_grid_runs(("duet",), seeds=(0, 1), tasks=TASKS[:2], root=tmp_path)
    for run in runs:
        write_replicates(run)
    below, above = error_of(compare_rows(runs)[0].rows[0].indices["map50"]["overall"])
    assert below > 0 and above > 0


def test_an_interval_beside_its_value_is_drawn_to_the_mark():
    assert error_of(Estimate(0.5, None, 0.52, 0.6, (0.5,))) == (0.0, pytest.approx(0.1))
    assert error_of(Estimate(0.5, None, 0.4, 0.48, (0.5,))) == (pytest.approx(0.1), 0.0)


def test_no_figure_without_an_index():
    runs = [run for run in make_grid_runs(("duet",), seeds=(0,), tasks=TASKS[:2]) if run.label == "joint"]
    assert overall_figure(compare_rows(runs)[0]) is None
