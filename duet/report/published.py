"""Published results of a series, to stand beside a run's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from duet.config import Section, validate
from duet.documents import read_yaml
from duet.paths import data_folder

Percent = Annotated[float, Field(ge=0, le=200)]


class PublishedRow(Section):
    """One line of a published table, in percent; ``spread`` is the ± of ri, gi and rai."""

    method: str
    detector: str
    ri: Percent
    gi: Percent
    rai: Percent
    spread: tuple[Percent, Percent, Percent] | None = None
    maps: tuple[Percent, ...] = ()


class PublishedTable(Section):
    """A published table: its number, the slices its mAP are of (task and slice), and its lines."""

    table: str
    slices: tuple[str, ...] = ()
    rows: tuple[PublishedRow, ...]


class PublishedTables(Section):
    """A file of data/published: tables by series."""

    series: dict[str, PublishedTable]


def published_tables() -> dict[str, PublishedTable]:
    """Every published table, by series.

    Raises:
        InputError: when a file of data/published is not in order.
    """
    tables: dict[str, PublishedTable] = {}
    for path in sorted(data_folder("published").glob("*.yaml")):
        tables.update(validate(PublishedTables, read_yaml(path), str(path)).series)
    return tables


def published_rows(results: Mapping[str, Any]) -> tuple[str, tuple[PublishedRow, ...]]:
    """The published lines of a run's series and detector.

    Args:
        results: the content of results.json.

    Returns:
        The table's number and the lines; empty when nothing was published of them.
    """
    table = published_tables().get(results["series"]["name"])
    if table is None:
        return "", ()
    detector = Path(results["detector"]).stem
    return table.table, tuple(row for row in table.rows if row.detector == detector)
