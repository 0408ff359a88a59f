"""Command-line options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

TrustOption = Annotated[
    bool, typer.Option("--trust", help="Open checkpoints that could run code; only if you know where they come from.")
]
