"""Predictive intervals over an input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bayesnn.plots._style import STYLES, VERMILLION, Values, finish, one_axes, to_numpy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def predictive_band(
    x: Values,
    mean: Values,
    lower: Values,
    upper: Values,
    epistemic_lower: Values | None = None,
    epistemic_upper: Values | None = None,
    data: tuple[Values, Values] | None = None,
    truth: Values | None = None,
    ax: Axes | None = None,
    level: float | None = None,
) -> Axes:
    """Predictive mean and interval over one input, with the epistemic part of the interval inside.

    Parameters
    ----------
    x : Tensor or ndarray, (n,)
        Inputs, in any order.
    mean, lower, upper : Tensor or ndarray, (n,)
        Predictive mean and ends of the predictive interval, units of y.
    epistemic_lower, epistemic_upper : Tensor or ndarray, (n,), optional
        The interval without the noise: of the draws' means.
    data : (x, y), optional
        Training data, (m,) each.
    truth : Tensor or ndarray, (n,), optional
        The noiseless function at `x`.
    ax : Axes, optional
    level : float, optional
        Of the intervals, in (0, 1), for the legend.

    Returns
    -------
    Axes

    Raises
    ------
    ValueError
        If the shapes differ, or one end of the epistemic interval is missing.
    """
    if (epistemic_lower is None) != (epistemic_upper is None):
        raise ValueError("epistemic_lower and epistemic_upper belong together; got one of them: pass both or none")
    at = to_numpy(x)
    order = np.argsort(at, kind="stable")
    given = {"x": x, "mean": mean, "lower": lower, "upper": upper, "epistemic_lower": epistemic_lower,
             "epistemic_upper": epistemic_upper, "truth": truth}  # fmt: skip
    curves = {}
    for name, values in given.items():
        if values is not None:
            if at.ndim != 1 or to_numpy(values).shape != at.shape:
                raise ValueError(f"{name} must be (n,) like x; got {tuple(values.shape)} for x {at.shape}: squeeze it")
            curves[name] = to_numpy(values)[order]
    ax = one_axes(ax, (7.0, 4.2))
    prefix = "" if level is None else f"{100 * level:g} % "
    ax.fill_between(curves["x"], curves["lower"], curves["upper"], color="#CFE3F0", linewidth=0,
                    label=f"{prefix}predictive interval")  # fmt: skip
    if "epistemic_lower" in curves:
        ax.fill_between(curves["x"], curves["epistemic_lower"], curves["epistemic_upper"], color="#7FB5D6", linewidth=0,
                        label=f"{prefix}epistemic interval")  # fmt: skip
    if data is not None:
        ax.plot(to_numpy(data[0]).ravel(), to_numpy(data[1]).ravel(), linestyle="none", marker="o", markersize=4,
                color="#333333", alpha=0.7, markeredgewidth=0, label="data")  # fmt: skip
    if "truth" in curves:
        ax.plot(curves["x"], curves["truth"], color=VERMILLION, linestyle=STYLES[1], linewidth=1.8, label="truth")
    ax.plot(curves["x"], curves["mean"], color="#004B75", linewidth=2.2, label="predictive mean")
    ax.set_xlim(float(curves["x"][0]), float(curves["x"][-1]))
    ax.set_xlabel("x")
    ax.set_ylabel("y")
    finish(ax)
    return ax
