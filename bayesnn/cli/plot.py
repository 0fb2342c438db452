"""``bayesnn plot``: one picture of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bayesnn.cli._app import app, command, one_line_errors

if TYPE_CHECKING:
    from bayesnn.cli._runs import Run
    from bayesnn.comparison import Comparison

OTHER_ROWS = 2000  # of images that are none, at most
# What is drawn, and of which runs it can be.
PICTURES = {
    "training-curves": ("loss by epoch, and validation NLL", "any run"),
    "reliability": ("accuracy against confidence", "classes"),
    "accuracy-rejection": ("accuracy when the most uncertain are left out", "classes"),
    "confusion": ("which classes are taken for which", "classes"),
    "entropy": ("predictive entropy of test images and of the same with shuffled pixels", "images"),
    "certainty": ("the most and the least certain test images", "images"),
    "rotation": ("what becomes of a test image that is turned", "images"),
    "boundary": ("where the classes meet, and the epistemic uncertainty", "two inputs and two classes"),
    "band": ("mean and 90 % interval over the input", "a regression on one input"),
    "pit": ("histogram of the probability integral transform", "a regression"),
    "coverage": ("share of targets in the interval, against its level", "a regression"),
    "traces": ("draws of four test predictions", "at least 4 draws a chain"),
    "autocorrelation": ("of the draws of four test predictions", "at least 4 draws a chain"),
    "ranks": ("of the draws of four test predictions, by chain", "2 chains or more of at least 4 draws"),
    "rhat": ("R-hat of the test predictions", "2 chains or more of at least 4 draws"),
    "weights": ("density of the weights beside that of their prior", "several draws of weights with a prior"),
    "filters": ("mean and sd of the filters of the first conv layer", "a conv net with several draws"),
}
_OF_THE_RUN = ("training-curves", "weights", "filters")  # without the data
_HELP = "\n\n\b\nPictures, and the runs that have them:\n" + "\n".join(
    f"  {name:<20}{what} ({of})" for name, (what, of) in PICTURES.items()
)


def plot(
    run: Annotated[Path, typer.Argument(help="Folder that `bayesnn fit` wrote.")],
    picture: Annotated[str, typer.Argument(help="One of those above.")],
    out: Annotated[Path, typer.Option(help="Picture: .png, .pdf or .svg.", metavar="FILE")],
    seed: Annotated[int, typer.Option(help="Of the samples of a distribution.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ..., or auto: the GPU where there is one.")] = "cpu",
    data_dir: Annotated[Path | None, typer.Option(help="Where data files lie. Default: $BAYESNN_DATA.")] = None,
) -> None:
    """Draw one picture of a run; most of them read the test part again from where it came."""
    with one_line_errors():
        from bayesnn.cli._runs import load
        from bayesnn.errors import at_least, unknown
        from bayesnn.report import DPI

        at_least("seed", seed, 0)
        if picture not in PICTURES:
            raise unknown("picture", picture, PICTURES)
        if out.suffix.lower() not in (".png", ".pdf", ".svg"):
            raise ValueError(f"Expected a file .png, .pdf or .svg for --out, got {out}: name it so.")
        if not out.parent.is_dir():
            raise ValueError(f"Expected a file in a folder that is there for --out, got {out}: make {out.parent}.")
        fitted = load(run, device)
        _check(fitted, picture)
        # What the pictures are drawn by knows of no seed.
        fitted.posterior.predict = partial(fitted.posterior.predict, seed=seed)  # type: ignore[method-assign]
        figure = _FIGURES[picture](fitted, None if picture in _OF_THE_RUN else _compared(fitted, data_dir), seed)
        figure.savefig(out, dpi=DPI)


plot.__doc__ = f"{plot.__doc__}{_HELP}"
command(
    app,
    "bayesnn plot runs/digits training-curves --out curves.png",
    "bayesnn plot runs/digits reliability --out reliability.pdf",
)(plot)


def _check(run: Run, picture: str) -> None:
    """Refuse a picture that such a run has not."""
    import torch

    classes, draws = run.kind == "classes", min(count or 0 for count in run.posterior.num_draws)
    outputs = len(run.classes) if run.classes is not None else 0
    several = all(count is None or count > 1 for count in run.posterior.num_draws)
    conv = any(isinstance(module, torch.nn.Conv2d) for module in run.posterior.model.net.modules())
    can = {
        "any run": True,
        "classes": classes,
        "images": classes and len(run.in_shape) == 3,
        "two inputs and two classes": classes and run.in_shape == (2,) and outputs == 2,
        "a regression on one input": not classes and run.in_shape == (1,),
        "a regression": not classes,
        "at least 4 draws a chain": draws >= 4,
        "2 chains or more of at least 4 draws": draws >= 4 and run.posterior.num_chains > 1,
        "several draws of weights with a prior": several and len(run.posterior.model.log_priors) > 0,
        "a conv net with several draws": several and conv,
    }
    needs = PICTURES[picture][1]
    if not can[needs]:
        possible = [name for name, (_, of) in PICTURES.items() if can[of]]
        raise ValueError(f"Expected {needs} for {picture!r}, got a run without that: it has {', '.join(possible)}.")


def _compared(run: Run, directory: Path | None) -> Comparison:
    """A comparison of one: what the pictures of `bayesnn compare` are drawn from."""
    from bayesnn.compare_setup import shuffle_pixels
    from bayesnn.comparison import Comparison, Fitted

    train, test = run.test(directory)
    predictive = run.posterior.predict(test.x)
    name = run.settings["method"]
    total = predictive.total.cpu() if run.kind == "classes" else None
    other, outside = None, None
    if len(train.in_shape) == 3:
        other = ("test images, pixels shuffled", shuffle_pixels(test.x[:OTHER_ROWS]))
        outside = run.posterior.predict(other[1]).total.cpu()
    one = Fitted(run.posterior, predictive.mean.cpu(), total, outside)
    return Comparison([], {"kind": run.kind}, {("", name): one}, train, test, other)


def _training_curves(run: Run, compared: Any, seed: int) -> Any:
    from bayesnn import plots

    return plots.training_curves({run.settings["method"]: run.posterior.history}).figure


def _of_classes(name: str) -> Callable[[Run, Any, int], Any]:
    def draw(run: Run, compared: Comparison, seed: int) -> Any:
        from bayesnn.report import _class_figures

        return _class_figures(compared, {method: one for (_, method), one in compared.fitted.items()})[name]

    return draw


def _of_draws(name: str) -> Callable[[Run, Any, int], Any]:
    def draw(run: Run, compared: Comparison, seed: int) -> Any:
        from bayesnn.report import _sampler_figures

        method = run.settings["method"]
        return _sampler_figures(compared, compared.fitted["", method], method)[name]

    return draw


def _of_chains(name: str) -> Callable[[Run, Any, int], Any]:
    def draw(run: Run, compared: Comparison, seed: int) -> Any:
        from bayesnn import plots
        from bayesnn.report import four_predictions

        _, values, names = four_predictions(compared, compared.fitted["", run.settings["method"]])
        return getattr(plots, name)(values, names)[0].figure

    return draw


def _confusion(run: Run, compared: Comparison, seed: int) -> Any:
    from bayesnn import plots

    return plots.confusion_matrix(compared.fitted["", run.settings["method"]].mean, compared.test.y, run.classes).figure


def _weights(run: Run, compared: Comparison, seed: int) -> Any:
    from bayesnn import plots

    return plots.weights_against_prior(run.posterior, seed=seed)[0].figure


def _filters(run: Run, compared: Comparison, seed: int) -> Any:
    from bayesnn import plots

    return plots.filters(run.posterior, seed=seed)[0, 0].figure


def _rotation(run: Run, compared: Comparison, seed: int) -> Any:
    from bayesnn import plots

    test = compared.test
    return plots.rotation({run.settings["method"]: run.posterior}, test.x[0], int(test.y[0]))[0].figure


def _boundary(run: Run, compared: Comparison, seed: int) -> Any:
    from bayesnn import plots

    return plots.decision_boundary(run.posterior, (compared.train.x, compared.train.y)).figure


def _band(run: Run, compared: Comparison, seed: int) -> Any:
    from bayesnn.report import _bands

    return _bands(compared, {method: one for (_, method), one in compared.fitted.items()})


def _pit(run: Run, compared: Comparison, seed: int) -> Any:
    from bayesnn import plots

    return plots.pit_histogram(run.posterior.predict(compared.test.x).pit(compared.test.y)).figure


def _coverage(run: Run, compared: Comparison, seed: int) -> Any:
    from bayesnn import plots

    pit = run.posterior.predict(compared.test.x).pit(compared.test.y)
    return plots.coverage_curve({run.settings["method"]: pit}).figure


_FIGURES: dict[str, Callable[[Run, Any, int], Any]] = {
    "training-curves": _training_curves,
    "reliability": _of_classes("reliability"),
    "accuracy-rejection": _of_classes("accuracy_rejection"),
    "entropy": _of_classes("entropy"),
    "certainty": _of_classes("certainty"),
    "rotation": _rotation,
    "boundary": _boundary,
    "band": _band,
    "pit": _pit,
    "coverage": _coverage,
    "traces": _of_draws("traces"),
    "rhat": _of_draws("rhat"),
    "autocorrelation": _of_chains("autocorrelation"),
    "ranks": _of_chains("ranks"),
    "confusion": _confusion,
    "weights": _weights,
    "filters": _filters,
}
