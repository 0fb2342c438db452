"""What ``fit`` takes: one algorithm, one file."""

from bayesnn.methods.base import Method, Plan, Run
from bayesnn.methods.map import MAP
from bayesnn.methods.mean_field import MeanFieldVI
from bayesnn.methods.psgld import PSGLD
from bayesnn.methods.sghmc import SGHMC
from bayesnn.methods.sgld import SGLD
from bayesnn.methods.sgnht import SGNHT

METHODS: dict[str, type[Method]] = {cls.__name__: cls for cls in (MAP, MeanFieldVI, SGLD, SGHMC, SGNHT, PSGLD)}

__all__ = ["MAP", "METHODS", "PSGLD", "SGHMC", "SGLD", "SGNHT", "MeanFieldVI", "Method", "Plan", "Run"]
