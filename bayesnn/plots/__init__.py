"""One function, one picture: each returns the matplotlib axes it drew on.

Without `ax`, a new `matplotlib.figure.Figure` is made: it belongs to nobody but the caller, is not registered with
pyplot and needs no closing. `ax.figure.savefig("picture.png")` writes it; in a notebook, `ax.figure` as the last
expression of a cell shows it. Axes of one's own want a figure with `layout="constrained"`, which leaves room for the
legends underneath. No global style is changed. Colours are those of Okabe & Ito (2008), told apart by every
common kind of colour vision; line styles, markers and hatches tell the same in grey.
"""

from bayesnn.plots.calibration import accuracy_rejection, reliability
from bayesnn.plots.chains import running_mean, traces
from bayesnn.plots.class_activation import class_activation
from bayesnn.plots.confusion import confusion_matrix
from bayesnn.plots.convergence import ess_histogram, rhat_histogram
from bayesnn.plots.detection import detection_roc
from bayesnn.plots.filters import feature_maps, filters
from bayesnn.plots.mixing import autocorrelation, ranks
from bayesnn.plots.pit import coverage_curve, pit_histogram
from bayesnn.plots.plane import decision_boundary
from bayesnn.plots.regression import predictive_band
from bayesnn.plots.rotation import rotation
from bayesnn.plots.shift import shift_curves
from bayesnn.plots.side_by_side import nll_against_seconds
from bayesnn.plots.training import training_curves
from bayesnn.plots.uncertainty import certainty_gallery, entropy_histogram
from bayesnn.plots.weights import weights_against_prior

__all__ = [
    "accuracy_rejection",
    "autocorrelation",
    "certainty_gallery",
    "class_activation",
    "confusion_matrix",
    "coverage_curve",
    "decision_boundary",
    "detection_roc",
    "entropy_histogram",
    "ess_histogram",
    "feature_maps",
    "filters",
    "nll_against_seconds",
    "pit_histogram",
    "predictive_band",
    "ranks",
    "reliability",
    "rhat_histogram",
    "rotation",
    "running_mean",
    "shift_curves",
    "traces",
    "training_curves",
    "weights_against_prior",
]
