"""``bayesnn compare``: many methods on the same budget."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bayesnn.cli._app import app, command, one_line_errors


@command(
    app,
    "bayesnn compare digits --out results",
    "bayesnn compare diabetes --methods map,vi,sgld --epochs 40 --seeds 0 --seeds 1",
    "bayesnn compare moons --config compare.toml",
)
def compare(
    data: Annotated[str, typer.Argument(help="Name of a data set: see `bayesnn data`.")],
    net: Annotated[
        list[str] | None,
        typer.Option(help="mlp, lenet5 or convnet; give it again for more nets. Default: lenet5 for images, else mlp."),
    ] = None,
    methods: Annotated[str, typer.Option(help="Names with commas between.")] = "map,ensemble,vi,sgld",
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data. Default: about 1,250 steps, 2,500 for regression.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = 64,
    budget: Annotated[
        str, typer.Option(help="What is equal: epochs (of a chain), gradients, or time:SECONDS (of a method).")
    ] = "epochs",
    seeds: Annotated[list[int], typer.Option(help="Give it again for more seeds.")] = [0],  # noqa: B006
    shifts: Annotated[
        bool, typer.Option("--shifts", help="Score turned, moved, noisy and blurred test images as well.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: the GPU where there is one. Default: cpu.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report (report.html), the numbers and the pictures.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where data files lie. Default: $BAYESNN_DATA.")] = None,
    progress: Annotated[bool, typer.Option(help="Show progress on standard error.")] = True,
) -> None:
    """Fit one net with many methods on the same budget, print their scores, and write the report."""
    with one_line_errors():
        from bayesnn.blind import blind_sentence
        from bayesnn.compare import compare as run
        from bayesnn.compare_setup import check_folder

        if out is not None:
            check_folder(out)

        names = [name.strip() for name in methods.split(",") if name.strip()]
        how: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "budget": budget, "seeds": tuple(seeds)}
        result = run(
            data, net or None, names, **how, shifts=shifts, device=device, directory=data_dir, progress=progress
        )
        if not result.rows:
            raise typer.Exit(130)
        if sys.stdout.isatty():
            from rich.console import Console

            Console().print(result.rich_table())
        else:  # Markdown goes well through pipes and into files
            print(result.table())
        print(f"\n{blind_sentence(result.settings['blind'])}".rstrip())
        if out is not None:
            result.save(out)
            print(f"\nThe report is {out / 'report.html'}; table, numbers and pictures are in {out}")
        if result.interrupted:
            raise typer.Exit(130)
        if all(row.get("error") is not None for row in result.rows):
            raise typer.Exit(2)
