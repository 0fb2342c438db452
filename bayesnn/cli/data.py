"""``bayesnn data``: what data sets have a name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bayesnn.cli._app import OneLineGroup, app, command, one_line_errors

group = typer.Typer(cls=OneLineGroup, no_args_is_help=False, rich_markup_mode=None)
app.add_typer(group, name="data")

# Written down, and held against what load() gives by a test: to load them all would take seconds.
FACTS = {
    "digits": ("10 classes", "1 x 8 x 8", "1,438 + 359"),
    "diabetes": ("real target", "10", "354 + 88"),
    "breast-cancer": ("2 classes", "30", "455 + 114"),
    "moons": ("2 classes", "2", "500 + 125"),
    "sine-gap": ("real target", "1", "80 + 20"),
    "mnist": ("10 classes", "1 x 28 x 28", "60,000 + 10,000"),
    "fashion-mnist": ("10 classes", "1 x 28 x 28", "60,000 + 10,000"),
}


@group.callback(invoke_without_command=True)
def _data(context: typer.Context) -> None:
    """Data sets that have a name."""
    if context.invoked_subcommand is None:
        list_names()


@command(group, "bayesnn data list", "bayesnn data list --data-dir ~/data", name="list")
def list_names(
    data_dir: Annotated[Path | None, typer.Option(help="Where data files lie. Default: $BAYESNN_DATA.")] = None,
) -> None:
    """List the data sets that have a name: target, shape of one input, rows (training + test), and where they are."""
    with one_line_errors():
        from bayesnn.data import names

        for name in names():
            kind, shape, rows = FACTS.get(name, ("", "", ""))
            print(f"{name:<15}{kind:<13}{shape:<13}{rows:<17}{_where(name, data_dir)}")


def _where(name: str, directory: Path | None) -> str:
    from bayesnn.data.images import ENVIRONMENT, IMAGE_SETS, candidates

    if name not in IMAGE_SETS:
        return "embedded"
    folder = directory or os.environ.get(ENVIRONMENT)
    looked = candidates(Path(folder), IMAGE_SETS[name], "train-labels-idx1-ubyte.gz") if folder else ()
    found = next((path for path in looked if path.is_file()), None)
    return f"in {found.parent}" if found is not None else "downloaded when it is first used"
