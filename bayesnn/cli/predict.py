"""``bayesnn predict``: a table of predictions and their uncertainties."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayesnn.cli._app import app, command, one_line_errors

if TYPE_CHECKING:
    from bayesnn.predictive import Predictive


@command(
    app,
    "bayesnn predict runs/houses new.csv --out predicted.csv",
    "bayesnn predict runs/houses new.csv --level 0.95 | head",
    "bayesnn predict runs/digits scans/ --resize --out scans.csv",
    "bayesnn predict runs/digits images.npy --draws 20",
)
def predict(
    run: Annotated[Path, typer.Argument(help="Folder that `bayesnn fit` wrote.")],
    input: Annotated[
        Path,
        typer.Argument(
            help="CSV file with the columns of the data by name (others are passed over), .npy file (N, ...), or "
            "folder of PNG and JPEG images; in the units of the data that the run was fitted to, pixels in [0, 1] "
            "or uint8."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="CSV file; - and by default standard output.")] = None,
    level: Annotated[float, typer.Option(help="Of the interval of a regression, in (0, 1).")] = 0.9,
    draws: Annotated[int | None, typer.Option(help="Draws a chain. Default: all, 100 of a distribution.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Inputs in one pass. Default: by their size.")] = None,
    resize: Annotated[bool, typer.Option("--resize", help="Scale images of another size.")] = False,
    seed: Annotated[int, typer.Option(help="Of the samples of a distribution.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: the GPU where there is one.")] = "cpu",
) -> None:
    """Predict: a row for each input, as CSV.

    Of classes: p(NAME) for each class, prediction, confidence (of the prediction), and in nats entropy = aleatoric +
    mutual_information. Of a real target, in its own units: mean, sd (of a new target) with its parts epistemic_sd and
    aleatoric_sd (sd^2 is the sum of their squares), and lower and upper of the central interval of a new target.
    """
    with one_line_errors():
        from bayesnn.cli._inputs import read_inputs
        from bayesnn.cli._runs import load
        from bayesnn.errors import at_least

        at_least("seed", seed, 0)
        to_file = out is not None and str(out) != "-"
        if to_file and out is not None:
            if out.exists() and input.exists() and out.samefile(input):
                raise ValueError(f"Expected another file for --out than the inputs, got {out} for both: name another.")
            if out.is_dir() or not out.parent.is_dir():
                raise ValueError(f"Expected a file in a folder that is there for --out, got {out}: name another.")
        if not 0 < level < 1:
            raise ValueError(f"Expected level in (0, 1), got {level!r}: 0.9 is the interval from 5 % to 95 %.")
        fitted = load(run, device)
        labels, x = read_inputs(fitted, input, resize)
        predictive = fitted.posterior.predict(x, draws=draws, batch_size=batch_size, seed=seed)
        columns: dict[str, Sequence[Any]] = {} if labels is None else {"file": labels}
        columns |= answers(predictive, fitted.kind, fitted.classes, level)
        if to_file and out is not None:
            with out.open("w", newline="", encoding="utf-8") as file:
                _write(columns, file)
        else:
            _write(columns, sys.stdout)


def answers(
    predictive: Predictive, kind: str, classes: Sequence[str] | None = None, level: float = 0.9
) -> dict[str, list[Any]]:
    """The columns of the table, by name; numbers are floats, predictions of classes their names."""
    if kind != "classes":
        lower, upper = predictive.interval(level)
        found = {
            "mean": predictive.mean, "sd": predictive.std, "epistemic_sd": predictive.epistemic.sqrt(),
            "aleatoric_sd": predictive.aleatoric.sqrt(), "lower": lower, "upper": upper,
        }  # fmt: skip
        return {name: values.tolist() for name, values in found.items()}
    probs = predictive.mean  # (batch, class)
    names = [str(k) for k in range(probs.shape[1])] if classes is None else classes
    confidence, best = probs.max(1)
    return {
        **{f"p({name})": probs[:, k].tolist() for k, name in enumerate(names)},
        "prediction": [names[k] for k in best.tolist()],
        "confidence": confidence.tolist(),
        "entropy": predictive.total.tolist(),
        "mutual_information": predictive.epistemic.tolist(),
        "aleatoric": predictive.aleatoric.tolist(),
    }


def _write(columns: dict[str, Sequence[Any]], file: Any) -> None:
    """Nine digits: as many as tell single precision apart."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        writer.writerow([f"{cell:.9g}" if isinstance(cell, float) else cell for cell in row])
