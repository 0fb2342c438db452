"""What ``fit`` takes: one algorithm, one file."""

from bayesnn.methods.base import Method, Plan, Run
from bayesnn.methods.map import MAP
from bayesnn.methods.mean_field import MeanFieldVI
from bayesnn.methods.sgld import SGLD

METHODS: dict[str, type[Method]] = {cls.__name__: cls for cls in (MAP, MeanFieldVI, SGLD)}

__all__ = ["MAP", "METHODS", "SGLD", "MeanFieldVI", "Method", "Plan", "Run"]
