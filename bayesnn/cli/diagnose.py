"""``bayesnn diagnose``: whether it is the posterior."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from bayesnn.cli._app import app, command, one_line_errors


@command(
    app,
    "bayesnn diagnose runs/digits",
    "bayesnn diagnose runs/houses new.csv --rows 100",
    "bayesnn diagnose runs/digits && bayesnn predict runs/digits scans/ --out scans.csv",
    verdict="the verdict complains: it asks for something to be done",
)
def diagnose(
    run: Annotated[Path, typer.Argument(help="Folder that `bayesnn fit` wrote.")],
    input: Annotated[
        Path | None,
        typer.Argument(
            help="Inputs at which predictions are compared, as for `bayesnn predict`. Default: the test part."
        ),
    ] = None,
    rows: Annotated[int, typer.Option(help="At most so many of them, evenly spaced.")] = 1000,
    draws: Annotated[int | None, typer.Option(help="Draws a chain. Default: all, 400 of a distribution.")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Scale images of another size.")] = False,
    seed: Annotated[int, typer.Option(help="Of the samples of a distribution.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: the GPU where there is one.")] = "cpu",
    data_dir: Annotated[Path | None, typer.Option(help="Where data files lie. Default: $BAYESNN_DATA.")] = None,
) -> None:
    """Say whether the chains agree, or the variational distribution is near the posterior, and the numbers behind it.

    Draws are compared by what they predict. The temperature of a sampler's draws and the bounds of a variational
    distribution need the training rows, which are read again from where they came.
    """
    with one_line_errors():
        from bayesnn.cli._inputs import read_inputs, some
        from bayesnn.cli._runs import load
        from bayesnn.errors import at_least

        at_least("seed", seed, 0)
        fitted = load(run, device)
        if input is None:
            if resize:
                raise ValueError("Expected a folder of images with --resize, got none: leave it out.")
            x = fitted.test(data_dir)[1].x
        else:
            x = read_inputs(fitted, input, resize)[1]
            try:
                fitted.data(data_dir)
            except (OSError, ValueError) as error:
                warnings.warn(f"Without the training rows: {error}", stacklevel=2)
        found = fitted.posterior.diagnose(x[some(x, rows)], draws=draws, seed=seed)
        print(found)
        if not found.sound:
            raise typer.Exit(1)
