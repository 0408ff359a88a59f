"""MODEL_CARD.md: what a deployed detector is, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader


def model_card(record: Mapping[str, Any]) -> str:
    """The card of a record (:class:`duet.artefact.Record` as plain values), as Markdown."""
    # Markdown is not escaped as a whole; what a user named is, cell by cell.
    environment = Environment(loader=PackageLoader("duet.report", "."), autoescape=False, keep_trailing_newline=True)
    environment.filters.update(
        cell=lambda value: str(value).replace("|", "\\|").replace("\n", " "),
        count=lambda value: "–" if value is None else f"{value:,}",
        fraction=lambda value: "–" if value is None else f"{value:.3f}",
    )
    return environment.get_template("model_card.md.j2").render(record=record)
