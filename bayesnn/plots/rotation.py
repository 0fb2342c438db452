"""The classic picture: an image is turned, and the net is or is not in doubt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bayesnn.data.shift import rotated
from bayesnn.plots._style import AxesArray, finish, layout, line_look, share_legend, to_numpy

if TYPE_CHECKING:
    from bayesnn.posterior import Posterior

ANGLES = tuple(range(0, 181, 15))


def rotation(
    posteriors: Mapping[str, Posterior],
    image: Tensor,
    label: int | None = None,
    angles: Sequence[float] = ANGLES,
    background: float | None = None,
    draws: int | None = None,
) -> AxesArray:
    """Probability of the most probable class, and entropy, of one image that is turned from 0 to 180 degrees.

    Parameters
    ----------
    posteriors : dict of str to Posterior
        Of nets that take such images.
    image : Tensor, (channel, height, width)
        As the net takes it, standardised if that is so.
    label : int, optional
        Its class: the upper panel then has that class's probability.
    angles : degrees, counter-clockwise.
    background : float, optional
        What comes in at the corners; the image's least value by default.
    draws : int, optional
        Draws a chain, as in ``predict``.

    Returns
    -------
    ndarray of two Axes
        The probability above, with the images along it; the entropy of the mixture (nats) below.

    Raises
    ------
    ValueError
        If there is no posterior, or the image has another shape.
    """
    from matplotlib.figure import Figure
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    if not posteriors:
        raise ValueError("there must be at least one method to draw; got an empty dict")
    if image.dim() != 3:
        raise ValueError(f"Expected one image (channel, height, width), got {tuple(image.shape)}: take one of a batch.")
    ground = float(image.min()) if background is None else background
    turned = torch.cat([rotated(image[None] - ground, angle) for angle in angles]) + ground
    figure = Figure(figsize=(8.0, 6.0), layout=layout())
    panels: AxesArray = figure.subplots(2, 1, sharex=True)
    upper, lower = panels
    for k, (name, posterior) in enumerate(posteriors.items()):
        predictive = posterior.predict(turned, draws=draws)
        probs = predictive.mean if label is None else predictive.mean[:, label : label + 1]
        look = line_look(k, label=name)
        upper.plot(angles, to_numpy(probs.max(1).values), **look)
        lower.plot(angles, to_numpy(predictive.total), **look)
    for angle, each in zip(angles, to_numpy(turned.mean(1)), strict=True):
        shown = OffsetImage(np.asarray(each), zoom=26 / each.shape[0], cmap="Greys")
        upper.add_artist(AnnotationBbox(shown, (angle, 1.18), frameon=False, annotation_clip=False))
    upper.set_ylim(0, 1.32)
    upper.set_yticks(np.linspace(0, 1, 6))
    upper.set_ylabel("largest probability" if label is None else f"probability of class {label}")
    lower.set_ylim(bottom=0)
    lower.set_ylabel("entropy (nats)")
    lower.set_xlabel("angle (degrees)")
    lower.set_xticks(angles[:: max(1, len(angles) // 7)])
    for panel in panels:
        finish(panel)
    share_legend(panels, made=True)
    return panels
