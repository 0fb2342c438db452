"""What the tests of the pictures share: rendering, legends and data."""

import warnings

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg


def draw(ax):
    """Render everything: what cannot be drawn, or laid out (matplotlib warns), fails here."""
    first = ax if isinstance(ax, Axes) else ax.ravel()[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FigureCanvasAgg(first.figure).draw()


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def lines(ax):
    return [line for line in ax.get_lines() if len(line.get_xdata()) > 0]


def classification(rows=600, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.softmax(2 * torch.randn(rows, classes, generator=generator), 1)
    return probs, torch.multinomial(probs, 1, generator=generator)[:, 0]


def history(chains=2, epochs=6):
    rows = [{"chain": c, "epoch": e, "loss": 2.0 / (1 + e) + c} for c in range(chains) for e in range(epochs)]
    for row in rows[::2]:
        row["val_nll"] = row["loss"] + 0.5
    return rows
