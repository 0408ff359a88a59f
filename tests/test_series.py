import pytest

from duet.series import Role, RoleSlice, Series, Slice, Task, slices_of


def names(*ids: int) -> tuple[str, ...]:
    return tuple(f"c{i}" for i in ids)


def span(first: int, last: int) -> tuple[str, ...]:
    return names(*range(first, last + 1))


PASCAL4 = Series(
    "pascal",
    (
        Task("watercolor", span(1, 3)),
        Task("comic", span(4, 6)),
        Task("clipart", span(7, 13)),
        Task("voc", span(14, 20)),
    ),
)
WEATHER3 = Series("weather", (Task("NS", span(1, 2)), Task("DS", span(3, 4)), Task("DF", span(5, 7))))
PASCAL2 = Series("pascal2", (Task("voc", span(1, 10)), Task("clipart", span(11, 20))))


def table(series: Series, task: int, role: Role) -> set[tuple[str, tuple[str, ...]]]:
    return {(item.domain, item.classes) for item in slices_of(series.slices(task), role)}


# Table S1 of the paper, written out.
TABLE_S1 = [
    (PASCAL2, 1, [("voc", span(1, 10))], [], []),
    (
        PASCAL2,
        2,
        [("clipart", span(11, 20))],
        [("voc", span(1, 10))],
        [("voc", span(11, 20)), ("clipart", span(1, 10))],
    ),
    (
        PASCAL4,
        2,
        [("comic", span(4, 6))],
        [("watercolor", span(1, 3))],
        [("watercolor", span(4, 6)), ("comic", span(1, 3))],
    ),
    (
        PASCAL4,
        3,
        [("clipart", span(7, 13))],
        [("watercolor", span(1, 3)), ("comic", span(4, 6))],
        [("watercolor", span(4, 6)), ("comic", span(1, 3)), ("clipart", span(1, 6))],
    ),
    (
        PASCAL4,
        4,
        [("voc", span(14, 20))],
        [("watercolor", span(1, 3)), ("comic", span(4, 6)), ("clipart", span(7, 13))],
        [("watercolor", span(4, 6)), ("comic", span(1, 3)), ("clipart", span(1, 6)), ("voc", span(1, 13))],
    ),
    (WEATHER3, 1, [("NS", span(1, 2))], [], []),
    (WEATHER3, 2, [("DS", span(3, 4))], [("NS", span(1, 2))], [("NS", span(3, 4)), ("DS", span(1, 2))]),
    (
        WEATHER3,
        3,
        [("DF", span(5, 7))],
        [("NS", span(1, 2)), ("DS", span(3, 4))],
        [("NS", span(3, 4)), ("DS", span(1, 2)), ("DF", span(1, 4))],
    ),
]


@pytest.mark.parametrize(("series", "task", "new", "old", "unseen"), TABLE_S1)
def test_slices_are_those_of_table_s1(series, task, new, old, unseen):
    assert table(series, task, Role.NEW) == set(new)
    assert table(series, task, Role.OLD) == set(old)
    assert table(series, task, Role.UNSEEN) == set(unseen)


def test_number_of_unseen_terms_of_avg_gi():
    assert len(PASCAL2.unseen_slices()) == 2
    assert len(WEATHER3.unseen_slices()) == 5
    assert len(PASCAL4.unseen_slices()) == 9


def test_an_override_replaces_the_rule_of_its_task_only():
    only = (RoleSlice(Role.NEW, Slice("b", ("y",))),)
    series = Series("s", (Task("a", ("x",)), Task("b", ("y",), only)))
    assert series.slices(2) == only
    assert table(series, 1, Role.NEW) == {("a", ("x",))}


def test_grid_is_every_task_in_every_domain():
    assert [(item.domain, item.classes) for item in PASCAL2.grid()] == [
        ("voc", span(1, 10)),
        ("voc", span(11, 20)),
        ("clipart", span(1, 10)),
        ("clipart", span(11, 20)),
    ]


def test_order_of_classes_is_the_order_of_learning():
    series = Series("s", (Task("a", ("z", "b")), Task("c", ("a",))))
    assert series.classes == ("z", "b", "a")
    assert series.classes_until(1) == ("z", "b")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ((), "at least one task"),
        ((("a", ("x",)), ("b", ("x",))), "class 'x' is in task 1 and in task 2"),
        ((("a", ("x",)), ("a", ("y",))), "'a' is named twice"),
    ],
)
def test_bad_series_are_refused(tasks, message):
    with pytest.raises(ValueError, match=message):
        Series("s", tuple(Task(domain, classes) for domain, classes in tasks))


def test_bad_tasks_and_slices_are_refused():
    with pytest.raises(ValueError, match="at least one class"):
        Task("a", ())
    with pytest.raises(ValueError, match="'x' is named twice"):
        Task("a", ("x", "x"))
    with pytest.raises(ValueError, match="at least one class"):
        Slice("a", ())
    with pytest.raises(ValueError, match="class 'q' is in no task"):
        Series("s", (Task("a", ("x",), (RoleSlice(Role.NEW, Slice("a", ("q",))),)),))
    with pytest.raises(IndexError, match="tasks 1 to 2, not 3"):
        PASCAL2.slices(3)
