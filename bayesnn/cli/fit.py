"""``bayesnn fit``: a posterior, in a folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from bayesnn.cli._app import INTERRUPTED, app, command, one_line_errors


@command(
    app,
    "bayesnn fit digits --method sgld --epochs 60 --out runs/digits",
    "bayesnn fit houses.csv --target price --ignore id --method sghmc:temperature=0.5,draws=200 --out runs/houses",
    "bayesnn fit moons --method vi --lr 0.005 --prior normal:scale=2 --chains 4 --out runs/moons --force",
    "bayesnn fit iris.csv --target species --config fit.toml --out runs/iris",
)
def fit(
    data: Annotated[str, typer.Argument(help="Name of a data set (`bayesnn data list`), or a CSV file with a header.")],
    out: Annotated[Path, typer.Option(help="New folder for the run.", metavar="DIR")],
    method: Annotated[
        str,
        typer.Option(
            help="map, ensemble, vi, sgld, or any class of bayesnn.methods (sghmc, laplace, nuts, ...), in either "
            "case; with options: sghmc:temperature=0.5,draws=200."
        ),
    ] = "sgld",
    net: Annotated[
        str | None, typer.Option(help="mlp, lenet5, convnet or linear. Default: lenet5 for images, else mlp.")
    ] = None,
    widths: Annotated[
        str | None, typer.Option(help="Of the hidden layers of the mlp, or none. Default: 50,50.")
    ] = None,
    dropout: Annotated[float, typer.Option(help="Of mlp and convnet, in [0, 1); for mcdropout.")] = 0.0,
    prior: Annotated[
        str | None,
        typer.Option(
            help="normal, layerwise, hierarchicalnormal, laplace, studentt, scalemixture or deterministic; with "
            "options: normal:scale=0.5. Default: layerwise:gain=3."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data. Default: the method's own.")] = None,
    batch_size: Annotated[int, typer.Option(help="Rows a step.")] = 64,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate, of methods that have one. Default: the method's own.")
    ] = None,
    chains: Annotated[int | None, typer.Option(help="Independent chains. Default: 4 of a sampler, else 1.")] = None,
    validation: Annotated[
        float | None, typer.Option(help="Share of the training rows to score after each epoch.")
    ] = None,
    augment: Annotated[
        list[str] | None,
        typer.Option(
            help="Random transform of images: rotation:15, shift:2, flip, crop:4 or noise:0.1; with options: "
            "flip:p=0.5,vertical=true. Give it again for more, one after another.",
            metavar="NAME[:AMOUNT]",
        ),
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option(help="balanced: rows of every class are drawn as often; the posterior stays what it was."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="CSV: the column to predict.", metavar="COLUMN")] = None,
    kind: Annotated[
        str, typer.Option(help="CSV: classes or regression; auto takes integers and text for classes.")
    ] = "auto",
    ignore: Annotated[
        list[str] | None, typer.Option(help="CSV: a column to leave out; give it again for more.", metavar="COLUMN")
    ] = None,
    test_fraction: Annotated[
        float | None, typer.Option(help="CSV: share of the rows to test on; 0 for none. Default: 0.2.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of initial weights, noise and the order of the data.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: the GPU where there is one.")] = "cpu",
    data_dir: Annotated[Path | None, typer.Option(help="Where data files lie. Default: $BAYESNN_DATA.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a run that is in the folder.")] = False,
    progress: Annotated[bool, typer.Option(help="Show progress on standard error.")] = True,
) -> None:
    """Fit the posterior of a net, print its scores on the test part, and save it for the other commands."""
    with one_line_errors():
        from bayesnn import fit as run
        from bayesnn.cli import _runs
        from bayesnn.cli._named import augment_named, build_net, method_named, net_options, prior_named
        from bayesnn.cli._sources import from_argument
        from bayesnn.compare_setup import versions
        from bayesnn.comparison import score
        from bayesnn.likelihoods import Categorical, Normal
        from bayesnn.model import BayesianModel
        from bayesnn.priors import to_config

        _runs.check_out(out, force)
        algorithm, usual = method_named(method, lr)
        rule = prior_named(prior)
        transform = augment_named(augment)
        source = from_argument(data, data_dir, target, kind, ignore or (), test_fraction)  # type: ignore[arg-type]
        options = net_options(net, source.train, widths, dropout)
        likelihood = Normal() if source.train.y.is_floating_point() else Categorical()
        model = BayesianModel(build_net(options), rule, likelihood)
        settings: dict[str, Any] = {
            "method": method, "epochs": epochs, "batch_size": batch_size, "lr": lr,
            "chains": usual if chains is None else chains, "seed": seed, "validation": validation, "device": device,
            "sampling": sampling,
        }  # fmt: skip
        how = {key: value for key, value in settings.items() if key not in ("method", "lr")}
        posterior = run(model, source.train, algorithm, augment=transform, progress=progress, **how)
        settings["augment"] = list(augment or ())
        description = {"net": options, "prior": to_config(posterior.model.prior), "settings": settings}
        description |= {"scores": None, "versions": versions()}
        # Before the scores: what goes wrong there must not cost the fit.
        _runs.save(out, posterior, source, description)
        print(posterior)
        print(f"The run is in {out}", flush=True)
        if posterior.info["interrupted"]:  # fit has said why
            raise typer.Exit(INTERRUPTED if posterior.info["error"] is None else 2)
        if source.test is not None:
            predictive = posterior.predict(source.test.x)
            scores = score(predictive, source.test.y, likelihood.kind)
            # JSON has neither NaN nor infinity.
            description["scores"] = {key: value if math.isfinite(value) else None for key, value in scores.items()}
            _runs.describe(out, posterior, source, description)
            print(f"{len(source.test)} test rows: {', '.join(f'{key} {value:.4g}' for key, value in scores.items())}")
