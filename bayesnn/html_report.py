"""The report of a comparison: one HTML file that holds everything, opens from disk and asks no network."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bayesnn.blind import blind_sentence
from bayesnn.budget import Budget
from bayesnn.table import COLUMNS

if TYPE_CHECKING:
    from bayesnn.comparison import Comparison

# What each picture shows, and what to look for in it, by the beginning of its file's name.
CAPTIONS = {
    "entropy": (
        "Doubt, on the test inputs and on others",
        "The two histograms should part: little entropy on inputs like the training data, much on inputs from "
        "elsewhere. A model that is sure on both does not know what it does not know.",
    ),
    "reliability": (
        "Is confidence earned?",
        "On the diagonal, 80 % of the answers given with 80 % confidence are right. Below it the model claims too "
        "much, above it too little; within the grey band it may well be chance.",
    ),
    "accuracy_rejection": (
        "Are the doubtful answers the wrong ones?",
        "From left to right ever more of the most doubtful rows are left unanswered. The curve of a model that knows "
        "where it fails climbs early.",
    ),
    "confusion": (
        "Which classes are taken for which?",
        "Of the last method. Off the diagonal are the errors: a dark cell there is a pair of classes that the net "
        "cannot tell apart.",
    ),
    "cost": (
        "What does it cost, and what does it give?",
        "Down and to the left is better; the mean of all seeds, with whiskers of one standard error. Seconds are those "
        "of the fit on this machine, and predicting is not in them.",
    ),
    "shift_curves": (
        "When the images change",
        "The mean over kinds of shift and all seeds, with a bar of one standard error: accuracy falls for everybody; "
        "what to look for is whose NLL and calibration error (ECE) stay low while it does.",
    ),
    "shift_kinds": (
        "The same, kind by kind",
        "Turned, moved, noisy and blurred images, each from the images as they are (0) to the strongest shift (5); the "
        "mean of all seeds.",
    ),
    "certainty": (
        "The most and the least certain images",
        "Of the last method. Errors among the most certain are the ones to worry about; the least certain should look "
        "hard to you, too.",
    ),
    "band": (
        "Predictions with their 90 % band",
        "The band should hold nine in ten points, and widen where there are none. The inner one leaves the noise out: "
        "it is what more data would narrow.",
    ),
    "training_curves": (
        "Did the fits arrive?",
        "Curves that still fall at the right end say that the budget was short, and that the table is one of "
        "unfinished fits. A validation NLL that rises is overfitting.",
    ),
    "traces": (
        "Do the chains agree?",
        "Each panel is one prediction, each colour one chain. Chains that wander through the same range have mixed; "
        "chains that keep to levels of their own have not.",
    ),
    "rhat": (
        "Do the chains agree, all test rows at once",
        "R-hat near 1 means that a prediction's chains cannot be told apart; to the right of the dashed line the "
        "draws do not stand for the posterior yet.",
    ),
}


def html_report(comparison: Comparison, drawn: Mapping[str, Sequence[Path]]) -> str:
    """The report as the text of one HTML file.

    Parameters
    ----------
    comparison : what was found.
    drawn : the pictures (PNG files) of each net, as :func:`bayesnn.report.pictures` wrote them; they go into the text.

    Returns
    -------
    str
        HTML whose every part, pictures, style and the script that sorts the table, is inside. Names are escaped.
    """
    from jinja2 import Environment, PackageLoader

    settings = comparison.settings
    environment = Environment(loader=PackageLoader("bayesnn"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    failed = [row for row in comparison.rows if row.get("error") is not None]
    columns = [COLUMNS[key] for key in comparison.columns]
    return environment.get_template("report.html").render(
        data=settings["data"] or "data of your own",
        summary=_summary(settings),
        interrupted=comparison.interrupted,
        columns=columns,
        lines=comparison.lines,
        several_nets=len(settings["nets"]) > 1,
        seeds=len(settings["seeds"]),
        marked=any(cell.best for line in comparison.lines for cell in line.cells.values()),
        isnan=math.isnan,
        failed=failed,
        figures={net: _figures(paths) for net, paths in drawn.items()},
        facts=_facts(comparison),
        methods=settings["methods"],
        call=settings["call"],
        command=settings["command"],
        versions=settings["versions"],
        json=json.dumps({key: value for key, value in settings.items() if key not in ("call", "command")}, indent=2),
    )


def _summary(settings: Mapping[str, Any]) -> str:
    methods, nets, seeds = len(settings["methods"]), settings["nets"], settings["seeds"]
    nets_named = f"the net {nets[0]}" if len(nets) == 1 else f"{len(nets)} nets ({', '.join(nets)})"
    budget = Budget.parse(settings["budget"]).sentence(settings["epochs"])
    over = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    return (
        f"{methods} method{'s' * (methods > 1)} on {nets_named}, fitted to {settings['num_train']:,} rows of "
        f"{settings['data'] or 'data'} and scored on {settings['num_test']:,} others: {budget}, {over}. "
        f"{blind_sentence(settings['blind'])}"
    ).rstrip()


def _figures(paths: Sequence[Path]) -> list[dict[str, str]]:
    """What the template needs of each picture, in the order of CAPTIONS."""
    order = list(CAPTIONS)
    found = []
    for path in paths:
        # The longest that fits: shift_curves has other words than shift_kinds, traces_sgld those of traces.
        kind = max((name for name in order if path.stem.startswith(name)), key=len)
        title, caption = CAPTIONS[kind]
        whose = path.stem.removeprefix(kind).removeprefix("_")
        uri = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
        found.append((order.index(kind), {
            "title": f"{title} ({whose})" if whose else title, "caption": caption, "uri": uri, "kind": kind,
        }))  # fmt: skip
    return [figure for _, figure in sorted(found, key=lambda pair: pair[0])]


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    """The settings that a reader asks for first, in words."""
    settings, rows = comparison.settings, comparison.rows
    epochs = sorted({row["epochs"] for row in rows if row.get("epochs") is not None})
    budget = Budget.parse(settings["budget"]).sentence(settings["epochs"])
    if settings["budget"] != "epochs" and epochs:
        budget += f": from {epochs[0]:,} to {epochs[-1]:,} epochs a chain"
    outside = "none" if comparison.ood is None else f"{settings['ood']} ({len(comparison.ood[1]):,})"
    if settings["validation"] is None:
        validation = "none, or rows of your own"
    else:
        validation = f"{settings['validation']:.0%} of the training rows, not fitted to"
    facts = [
        ("data", f"{settings['data'] or 'your own'}: {settings['num_train']:,} rows, {settings['num_test']:,} to test"),
        ("nets", ", ".join(settings["nets"])),
        ("budget", budget),
        ("rows a step", f"{settings['batch_size'] or 'all'}"),
        ("seeds", ", ".join(map(str, settings["seeds"]))),
        ("validation", validation),
        ("prior", _options(settings["prior"])),
        ("likelihood", _options(settings["likelihood"])),
    ]
    if settings["kind"] == "classes":
        facts.append(("inputs from elsewhere", outside))
    if comparison.shifted:
        kinds = ", ".join(dict.fromkeys(row["kind"] for row in comparison.shifted))
        facts.append(("shifted images", f"{kinds}; severities 0 to 5"))
    return [*facts, ("threads", str(settings["threads"]))]


def _options(config: Any) -> str:
    """``Layerwise(rule=fan-in, gain=3.0)`` of a config; what is none, such as a function's name, as it is."""
    if not isinstance(config, Mapping) or "kind" not in config:
        return str(config)
    inner = ", ".join(f"{key}={_options(value)}" for key, value in config.items() if key != "kind")
    return f"{config['kind']}({inner})"
