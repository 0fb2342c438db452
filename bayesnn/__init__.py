"""bayesnn: Bayesian neural networks whose uncertainty can be trusted."""

from bayesnn import conformal, data, diagnostics, likelihoods, metrics, nets, optim, plots, priors
from bayesnn import rng as rng
from bayesnn import source as source
from bayesnn.choose_prior import choose_prior
from bayesnn.compare import compare
from bayesnn.errors import DivergedError
from bayesnn.fit import fit
from bayesnn.methods import (
    HMC,
    IVON,
    MAP,
    MCLMC,
    NUTS,
    PSGLD,
    SGHMC,
    SGLD,
    SGNHT,
    SVGD,
    SWAG,
    FullRankVI,
    GibbsLinear,
    Laplace,
    LowRankVI,
    MCDropout,
    MeanFieldVI,
    PyroVI,
    RadialVI,
)
from bayesnn.model import BayesianModel
from bayesnn.posterior import Posterior
from bayesnn.predictive import Predictive
from bayesnn.prior_shift import prior_shift
from bayesnn.scaling import Temperature
from bayesnn.stopping import EarlyStopping

__version__ = "0.1.0"

__all__ = [
    "HMC",
    "IVON",
    "MAP",
    "MCLMC",
    "NUTS",
    "PSGLD",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "SVGD",
    "SWAG",
    "BayesianModel",
    "DivergedError",
    "EarlyStopping",
    "FullRankVI",
    "GibbsLinear",
    "Laplace",
    "LowRankVI",
    "MCDropout",
    "MeanFieldVI",
    "Posterior",
    "Predictive",
    "PyroVI",
    "RadialVI",
    "Temperature",
    "choose_prior",
    "compare",
    "conformal",
    "data",
    "diagnostics",
    "fit",
    "likelihoods",
    "metrics",
    "nets",
    "optim",
    "plots",
    "prior_shift",
    "priors",
]
