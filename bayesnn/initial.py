"""Initial weights: the rules that people know by name, a draw of the prior, or a function of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bayesnn.model import BayesianModel
from bayesnn.nets._parts import frozen_modules
from bayesnn.priors import NO_FAN, fans
from bayesnn.rng import isolated

Initial = str | Callable[[nn.Module], Any]

CUT = 2.0  # standard deviations at which trunc_normal cuts
# Variance of a standard Normal cut at +-c: 1 - 2 c phi(c) / (2 Phi(c) - 1).
CUT_VARIANCE = 1 - 2 * CUT * math.exp(-(CUT**2) / 2) / math.sqrt(2 * math.pi) / math.erf(CUT / math.sqrt(2))


def _normal(w: Tensor, sd: float, stream: torch.Generator) -> None:
    nn.init.normal_(w, 0.0, sd, generator=stream)


def _uniform(w: Tensor, sd: float, stream: torch.Generator) -> None:
    bound = math.sqrt(3) * sd
    nn.init.uniform_(w, -bound, bound, generator=stream)


def _truncated(w: Tensor, sd: float, stream: torch.Generator) -> None:
    wide = sd / math.sqrt(CUT_VARIANCE)
    nn.init.trunc_normal_(w, 0.0, wide, -CUT * wide, CUT * wide, generator=stream)


# By name: the law, and the variance of a weight with so many inputs and outputs.
Rule = tuple[Callable[[Tensor, float, torch.Generator], None], Callable[[float, float], float]]
RULES: dict[str, Rule] = {
    "kaiming_uniform": (_uniform, lambda fan_in, fan_out: 2 / fan_in),
    "kaiming_normal": (_normal, lambda fan_in, fan_out: 2 / fan_in),
    "xavier_uniform": (_uniform, lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "xavier_normal": (_normal, lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "trunc_normal": (_truncated, lambda fan_in, fan_out: 1 / fan_in),
}
FRESH = ("fresh", "default", "orthogonal", "prior", *RULES)


@torch.no_grad()
def initialise(model: BayesianModel, initial: Initial, stream: torch.Generator) -> None:
    """Give ``model`` fresh initial weights, in place; frozen parameters keep their values.

    Parameters
    ----------
    model : a chain's own copy.
    initial : ``"fresh"`` or ``"default"``, what each module's ``reset_parameters`` draws; or that, and then:

        - ``"kaiming_normal"``, ``"kaiming_uniform"``: variance 2 / fan_in, for ReLU (He et al. 2015, eq. 10);
        - ``"xavier_normal"``, ``"xavier_uniform"``: variance 2 / (fan_in + fan_out), for tanh (Glorot & Bengio 2010,
          eq. 12 and 16);
        - ``"trunc_normal"``: variance 1 / fan_in, of a Normal cut at two of its standard deviations (LeCun et al.
          1998);
        - ``"orthogonal"``: rows or columns, whichever are fewer, orthonormal (Saxe et al. 2014);

        for weights with two axes or more, the biases of their modules 0. Fans are those of
        :class:`bayesnn.priors.Layerwise`; norms, embeddings and parameters that belong to no layer stay as reset.
        ``"prior"``: all that has a prior is a draw from it. A function ``(net) -> None`` changes the net after the
        reset; inside of it torch's global generator is the chain's.
    stream : of all random numbers.
    """
    with isolated(stream):
        reset_parameters(model)
        if callable(initial):
            frozen = [(p, p.detach().clone()) for p in model.parameters() if not p.requires_grad]
            initial(model.net)
            for p, value in frozen:
                p.copy_(value)
        elif initial == "prior":
            for name, parameter in model.bayesian_parameters().items():
                parameter.copy_(model.log_priors[name].sample())
    if initial == "orthogonal" or (isinstance(initial, str) and initial in RULES):
        for module in model.net.modules():
            _initialise_layer(module, initial, stream)


def _initialise_layer(module: nn.Module, rule: str, stream: torch.Generator) -> None:
    """Weights by the rule, biases 0; nothing where no parameter of the module's own has a fan."""
    own = dict(module.named_parameters(recurse=False))
    weights = [p for p in own.values() if p.dim() >= 2]
    if isinstance(module, NO_FAN) or not weights or not _resets(module):
        return
    for p in own.values():
        if not p.requires_grad:
            continue
        if p.dim() < 2:
            nn.init.zeros_(p)
        elif rule == "orthogonal":
            nn.init.orthogonal_(p, generator=stream)
        else:
            law, variance = RULES[rule]
            law(p, math.sqrt(variance(*fans(p, module))), stream)


def _resets(module: nn.Module) -> bool:
    return callable(_reset_of(module))


def _reset_of(module: nn.Module) -> Any:
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def reset_parameters(model: BayesianModel) -> None:
    """Draw fresh initial values as torch's own layers do; what no module resets stays as it is.

    Frozen parameters, and the buffers of parts that are frozen as a whole, keep their values: they are constants of the
    model.

    Takes random numbers from torch's global generator: call it inside :func:`bayesnn.rng.isolated`.
    """
    buffers = [buffer for module in frozen_modules(model.net) for buffer in module.buffers(recurse=False)]
    constants = [*(p for p in model.parameters() if not p.requires_grad), *buffers]
    frozen = [(p, p.detach().clone()) for p in constants]
    # Children first: a parent that initialises its children in its own way has the last word.
    for module in reversed(list(model.modules())):
        reset = _reset_of(module)
        if callable(reset):
            reset()
    with torch.no_grad():
        for p, value in frozen:
            p.copy_(value)
