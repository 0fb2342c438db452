"""What ``fit`` takes: one algorithm, one file."""

from bayesnn.methods.base import Method, Plan, Run
from bayesnn.methods.full_rank import FullRankVI
from bayesnn.methods.gibbs_linear import GibbsLinear
from bayesnn.methods.hmc import HMC, NUTS
from bayesnn.methods.ivon import IVON
from bayesnn.methods.laplace import Laplace
from bayesnn.methods.low_rank import LowRankVI
from bayesnn.methods.map import MAP
from bayesnn.methods.mc_dropout import MCDropout
from bayesnn.methods.mclmc import MCLMC
from bayesnn.methods.mean_field import MeanFieldVI
from bayesnn.methods.psgld import PSGLD
from bayesnn.methods.pyro_vi import PyroVI
from bayesnn.methods.radial import RadialVI
from bayesnn.methods.sghmc import SGHMC
from bayesnn.methods.sgld import SGLD
from bayesnn.methods.sgnht import SGNHT
from bayesnn.methods.svgd import SVGD
from bayesnn.methods.swag import SWAG

METHODS: dict[str, type[Method]] = {
    cls.__name__: cls
    for cls in (
        MAP,
        MeanFieldVI,
        SGLD,
        SGHMC,
        SGNHT,
        PSGLD,
        MCDropout,
        SWAG,
        Laplace,
        HMC,
        NUTS,
        MCLMC,
        GibbsLinear,
        FullRankVI,
        LowRankVI,
        RadialVI,
        PyroVI,
        IVON,
        SVGD,
    )
}

__all__ = [
    "HMC",
    "IVON",
    "MAP",
    "MCLMC",
    "METHODS",
    "NUTS",
    "PSGLD",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "SVGD",
    "SWAG",
    "FullRankVI",
    "GibbsLinear",
    "Laplace",
    "LowRankVI",
    "MCDropout",
    "MeanFieldVI",
    "Method",
    "Plan",
    "PyroVI",
    "RadialVI",
    "Run",
]
