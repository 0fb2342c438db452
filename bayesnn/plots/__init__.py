"""One function, one picture: each returns the matplotlib axes it drew on.

Without `ax`, a new `matplotlib.figure.Figure` is made: it belongs to nobody but the caller, is not registered with
pyplot and needs no closing. `ax.figure.savefig("picture.png")` writes it; in a notebook, `ax.figure` as the last
expression of a cell shows it. Axes of one's own want a figure with `layout="constrained"`, which leaves room for the
legends underneath. No global style is changed. Colours are those of Okabe & Ito (2008), told apart by every
common kind of colour vision; line styles, markers and hatches tell the same in grey.
"""

from bayesnn.plots.calibration import accuracy_rejection, reliability
from bayesnn.plots.chains import rhat_histogram, traces
from bayesnn.plots.detection import detection_roc
from bayesnn.plots.pit import coverage_curve, pit_histogram
from bayesnn.plots.plane import decision_boundary
from bayesnn.plots.regression import predictive_band
from bayesnn.plots.rotation import rotation
from bayesnn.plots.shift import shift_curves
from bayesnn.plots.training import training_curves
from bayesnn.plots.uncertainty import certainty_gallery, entropy_histogram

__all__ = [
    "accuracy_rejection",
    "certainty_gallery",
    "coverage_curve",
    "decision_boundary",
    "detection_roc",
    "entropy_histogram",
    "pit_histogram",
    "predictive_band",
    "reliability",
    "rhat_histogram",
    "rotation",
    "shift_curves",
    "traces",
    "training_curves",
]
