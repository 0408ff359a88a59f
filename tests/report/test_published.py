from fake_run import make_results

from duet.datasets.series_file import find_series
from duet.report.html import render_report
from duet.report.published import published_rows, published_tables


def test_every_table_is_of_a_shipped_series_with_as_many_numbers_as_slices():
    tables = published_tables()
    assert len(tables) == 10
    for name, table in tables.items():
        assert find_series(name).series.name == name
        assert all(len(row.maps) == len(table.slices) for row in table.rows)


def test_indices_fit_the_published_map_values():
    off = []
    for name in ("pascal-voc-clipart", "pascal-clipart-voc", "weather-ds-ns"):
        for row in published_tables()[name].rows:
            first, old = row.maps[:2]
            if abs(100 * old / first - row.ri) > 0.12 or abs((row.ri + row.gi) / 2 - row.rai) > 0.02:
                off.append((name, row.method, row.detector))
    # As printed, the RI of these two are exchanged.
    assert off == [("weather-ds-ns", "ERD", "yolo11x"), ("weather-ds-ns", "DuET", "yolo11x")]


def test_rows_of_the_same_series_and_detector():
    table, rows = published_rows({"series": {"name": "pascal-voc-clipart"}, "detector": "weights/yolo11n.pt"})
    assert table == "S7"
    assert [(row.method, row.ri, row.gi, row.rai) for row in rows] == [
        ("Seq FT", 0.75, 12.86, 6.81),
        ("LwF", 72.64, 33.74, 53.19),
        ("ERD", 68.66, 43.68, 56.17),
        ("DuET", 87.44, 44.54, 65.99),
    ]
    assert published_rows({"series": {"name": "mine"}, "detector": "yolo11n"}) == ("", ())
    assert published_rows({"series": {"name": "pascal-four"}, "detector": "yolo11s"}) == ("S12", ())


def test_they_stand_in_the_report_of_that_series_only():
    results = make_results()
    assert "Published for this series" not in render_report(results, [])
    results["series"]["name"], results["detector"] = "weather-three", "yolo11n"
    page = render_report(results, [])
    assert "DuET, Table S13" in page
    assert "0.886 ± 0.002" in page
    assert page.count("this run: ") == 1
