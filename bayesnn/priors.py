"""Priors: from (name, parameter, module) to the distribution of that parameter's weights.

A prior is any callable ``prior(name, parameter, module) -> pyro distribution | None``. ``None`` leaves the parameter
deterministic: it is optimised, without a prior and without noise. The distribution's event shape is the parameter's
shape. The classes here cover what the literature uses; a plain function does as well.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.modules.batchnorm import _NormBase

from bayesnn.errors import positive, unknown

PriorRule = Callable[[str, Tensor, nn.Module], Any]


def over(base: Any, parameter: Tensor) -> Any:
    """``base``, a distribution of one weight, made independent over the shape of ``parameter``."""
    return base.expand(parameter.shape).to_event(parameter.dim())


class Prior(ABC):
    """Base class: subclasses give the distribution; BatchNorm's scale and shift stay deterministic.

    The scale and shift of a BatchNorm layer multiply and add to normalised activations; a weight prior shrinks the
    scale to zero, which is not what anybody means. Name them in :class:`ByName` to give them a prior all the same.

    Norms of each row on its own (layer, group, filter response) do have a prior, about 0: with them every parameter of
    a net is drawn, as HMC, NUTS and MCLMC ask. The scales of filter response norms are about 1, where they start, under
    ``ByName({"*.gamma": Normal(0.3, loc=1.0)}, default=Layerwise(gain=3.0))``.
    """

    def __call__(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        if isinstance(module, _NormBase):
            return None
        return self.distribution(name, parameter, module)

    @abstractmethod
    def distribution(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        """The distribution of ``parameter`` (event shape = its shape), or None for a deterministic one."""

    def unmatched(self, net: nn.Module) -> list[str]:
        """Rules of this prior that no parameter of ``net`` meets: a misspelt one would be silently without effect."""
        return []

    def likelihood_priors(self) -> dict[str, Any]:
        """Priors of the likelihood's own parameters, by name, in place of those that it states itself.

        A rule over the net's parameters leaves them to its default.
        """
        default = getattr(self, "default", None)
        return default.likelihood_priors() if isinstance(default, Prior) else {}

    def config(self) -> dict[str, Any]:
        """The prior as JSON: ``from_config(prior.config())`` gives an equal one; a user's own is a name only."""
        if type(self) not in _KINDS.values():
            return {"kind": "custom", "name": repr(self)}
        fields: Any = self  # a dataclass, as all of _KINDS are
        return {"kind": type(self).__name__, **asdict(fields)}


def _scalar(value: float, parameter: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=parameter.dtype, device=parameter.device)


@dataclass(frozen=True)
class Normal(Prior):
    """Every weight ~ Normal(loc, scale^2).

    Parameters
    ----------
    scale : standard deviation, > 0.
    loc : mean.
    """

    scale: float = 1.0
    loc: float = 0.0

    def __post_init__(self) -> None:
        positive("scale", self.scale)

    def distribution(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        return over(
            dist.Normal(_scalar(self.loc, parameter), _scalar(self.scale, parameter), validate_args=False), parameter
        )


def fans(parameter: Tensor, module: nn.Module) -> tuple[float, float]:
    """(fan_in, fan_out) of a weight with at least two axes: inputs and outputs that one unit is wired to."""
    receptive = math.prod(parameter.shape[2:])
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        # A transposed convolution stores (in, out / groups, *kernel): the axes change places.
        return parameter.shape[0] / module.groups * receptive, parameter.shape[1] * receptive
    groups = module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
    return parameter.shape[1] * receptive, parameter.shape[0] / groups * receptive


# Every output of these is wired to one weight of a kind, whatever the number of axes: there is no fan-in to scale by.
NO_FAN = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)

_LAYER_VARIANCE: dict[str, Callable[[float, float], float]] = {
    "fan-in": lambda fan_in, fan_out: 1.0 / fan_in,
    "kaiming": lambda fan_in, fan_out: 2.0 / fan_in,
    "xavier": lambda fan_in, fan_out: 2.0 / (fan_in + fan_out),
}


@dataclass(frozen=True)
class Layerwise(Prior):
    """Each layer's weights ~ Normal(0, gain^2 * v), where v is set by the layer's width.

    ``rule="fan-in"``: v = 1 / fan_in (Neal 1996: finite variance in the limit of wide layers);
    ``"kaiming"``: v = 2 / fan_in (He et al. 2015, eq. 10); ``"xavier"``: v = 2 / (fan_in + fan_out) (Glorot &
    Bengio 2010, eq. 16). Parameters with fewer than two axes (biases), norms and embeddings ~ Normal(0, bias_scale^2).
    """

    rule: str = "fan-in"
    gain: float = 1.0
    bias_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.rule not in _LAYER_VARIANCE:
            raise unknown("rule of a layerwise prior", self.rule, _LAYER_VARIANCE)
        positive("gain", self.gain)
        positive("bias_scale", self.bias_scale)

    def distribution(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        if parameter.dim() < 2 or isinstance(module, NO_FAN):
            scale = self.bias_scale
        else:
            scale = self.gain * math.sqrt(_LAYER_VARIANCE[self.rule](*fans(parameter, module)))
        return over(dist.Normal(_scalar(0.0, parameter), _scalar(scale, parameter), validate_args=False), parameter)


@dataclass(frozen=True)
class HierarchicalNormal(Prior):
    """The weights of each parameter tensor ~ Normal(0, 1 / tau), with a precision tau of its own ~ Gamma(shape, rate).

    The precision is inferred (Neal 1996): samplers draw it by Gibbs steps between their own, mean-field VI
    optimises it (empirical Bayes). Each draw of a posterior holds its precisions, ``"precisions.net__0__weight"``.
    A point estimate has no joint mode worth having: n / 2 log(tau) draws n weights to zero and tau to (shape + n / 2) /
    rate, whatever the data say of a few of them.

    Parameters
    ----------
    shape, rate : a, b > 0 of the Gamma; the mean precision is a / b, and the prior of a weight, tau integrated out, is
        Student's t with 2 a degrees of freedom and scale sqrt(b / a).
    """

    shape: float = 1.0
    rate: float = 1.0

    def __post_init__(self) -> None:
        positive("shape", self.shape)
        positive("rate", self.rate)

    def distribution(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        prior = normal_of_precision(_scalar(self.shape / self.rate, parameter), parameter.shape)
        prior.hyperprior = (float(self.shape), float(self.rate))
        return prior


def normal_of_precision(precision: Tensor, shape: torch.Size) -> Any:
    """Normal(0, 1 / precision) for each weight of a tensor of that shape."""
    one = dist.Normal(torch.zeros_like(precision), precision.rsqrt(), validate_args=False)
    return one.expand(shape).to_event(len(shape))


@dataclass(frozen=True)
class Laplace(Prior):
    """Every weight ~ Laplace(0, scale): density exp(-|w| / scale) / (2 scale); its standard deviation is
    sqrt(2) scale.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        positive("scale", self.scale)

    def distribution(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        return over(
            dist.Laplace(_scalar(0.0, parameter), _scalar(self.scale, parameter), validate_args=False), parameter
        )


@dataclass(frozen=True)
class StudentT(Prior):
    """Every weight ~ Student's t with ``df`` degrees of freedom, scaled by ``scale``."""

    df: float = 3.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        positive("df", self.df)
        positive("scale", self.scale)

    def distribution(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        zero, df, scale = (_scalar(value, parameter) for value in (0.0, self.df, self.scale))
        return over(dist.StudentT(df, zero, scale, validate_args=False), parameter)


@dataclass(frozen=True)
class ScaleMixture(Prior):
    """Every weight ~ pi Normal(0, wide^2) + (1 - pi) Normal(0, narrow^2) (Blundell et al. 2015, eq. 7).

    Parameters
    ----------
    pi : share of the wide component, in (0, 1).
    wide, narrow : standard deviations, sigma_1 > sigma_2 in the paper.
    """

    pi: float = 0.5
    wide: float = 1.0
    narrow: float = math.exp(-6)

    def __post_init__(self) -> None:
        if not 0 < self.pi < 1:
            raise ValueError(f"Expected pi in (0, 1), got {self.pi!r}: it is the share of the wide component.")
        positive("wide", self.wide)
        positive("narrow", self.narrow)

    def distribution(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        share = torch.stack((_scalar(self.pi, parameter), _scalar(1 - self.pi, parameter)))
        scales = torch.stack((_scalar(self.wide, parameter), _scalar(self.narrow, parameter)))
        components = dist.Normal(torch.zeros_like(scales), scales)
        return over(_MixtureOfNormals(dist.Categorical(share), components), parameter)


class _MixtureOfNormals(dist.MixtureSameFamily):  # type: ignore[misc]
    """Any real number: of a mixture in general torch does not know how to map the support to the reals."""

    support = constraints.real


@dataclass(frozen=True)
class Independent(Prior):
    """Every weight ~ Normal with a mean and a standard deviation of its own: what another posterior says.

    Made by :meth:`bayesnn.Posterior.as_prior`.

    Parameters
    ----------
    loc, scale : by the parameters' names, tensors of their shapes. A parameter that is not named is deterministic.
    likelihood : (loc, scale) of the likelihood's own parameters, by name.
    """

    loc: Mapping[str, Tensor]
    scale: Mapping[str, Tensor]
    likelihood: Mapping[str, tuple[Tensor, Tensor]]

    def __call__(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        return self.distribution(name, parameter, module)

    def distribution(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        if name not in self.loc:
            return None
        loc, scale = self.loc[name].to(parameter), self.scale[name].to(parameter)
        return dist.Normal(loc, scale, validate_args=False).to_event(parameter.dim())

    def likelihood_priors(self) -> dict[str, Any]:
        """What the posterior says of them."""
        return {name: dist.Normal(loc, scale).to_event(loc.dim()) for name, (loc, scale) in self.likelihood.items()}

    def config(self) -> dict[str, Any]:
        return {"kind": "custom", "name": "Posterior.as_prior()"}


@dataclass(frozen=True, eq=False)
class Informative(Prior):
    """Weights that somebody has trained, m, as the prior's mean: w_j ~ Normal(m_j, (scale * s_j)^2).

    s_j is the standard deviation that ``default`` gives the same weight: ``scale`` is a share of the vague prior's
    spread, one number for layers of all widths. As it goes to 0 the weights are frozen at m, and 1 is as vague as
    ``default``, about m. (MOPED, Krishnan, Subedar & Tickoo 2020, has scale * abs(m_j): there a weight near 0 can never
    grow.) A fitted scale comes from :func:`bayesnn.choose_prior`; a mean and a standard deviation for each weight from
    :meth:`bayesnn.Posterior.as_prior` of a posterior of the first task.

    Give ``fit`` ``init="net"`` and a net that has these weights, or it has to find the way to m first.

    Parameters
    ----------
    mean : a net, or tensors by the parameters' names: ``net.state_dict()``. Buffers among them are left out.
    scale : > 0.
    default : prior of the weights that ``mean`` does not name, such as those of a new head; Normal for those it does.

    Examples
    --------
    >>> net = replace_head(pretrained, 10)                                        # doctest: +SKIP
    >>> ByName({"dense3.*": Layerwise(gain=3.0)}, default=Informative(net, 0.1))  # doctest: +SKIP
    """

    mean: nn.Module | Mapping[str, Tensor] = field(repr=False)
    scale: float = 0.1
    default: Any = Layerwise(gain=3.0)

    def __post_init__(self) -> None:
        positive("scale", self.scale)
        named = dict(self.mean.named_parameters()) if isinstance(self.mean, nn.Module) else self.mean
        # A copy: a net that is trained further must not take its prior along.
        object.__setattr__(self, "mean", {name: value.detach().clone() for name, value in named.items()})

    def distribution(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        prior = None if self.default is None else _named(self.default, name, parameter, module)
        assert not isinstance(self.mean, nn.Module)
        if name not in self.mean:
            return prior
        base = getattr(prior, "base_dist", prior)
        if not isinstance(base, torch.distributions.Normal) or hasattr(prior, "hyperprior"):
            raise ValueError(
                f"Expected a default prior that is Normal for {name!r}, got {type(base).__name__}: its standard "
                "deviation is what scale is a share of; use Normal or Layerwise."
            )
        mean = self.mean[name].to(parameter)
        if mean.shape != parameter.shape:
            raise ValueError(
                f"Expected a mean of shape {tuple(parameter.shape)} for {name!r}, got {tuple(mean.shape)}: give that "
                "layer another prior, ByName({...}, default=Informative(...))."
            )
        return dist.Normal(mean, self.scale * base.scale, validate_args=False).to_event(parameter.dim())

    def unmatched(self, net: nn.Module) -> list[str]:
        return sorted(set(self.mean) - set(net.state_dict()))  # type: ignore[arg-type]

    def config(self) -> dict[str, Any]:
        return {"kind": "custom", "name": f"Informative(..., scale={self.scale})"}


@dataclass(frozen=True)
class Deterministic(Prior):
    """No prior: the parameter is optimised as in ordinary training, and gets no noise."""

    def distribution(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        return None


@dataclass(frozen=True)
class ByName(Prior):
    """Rules over parameters' names: the first pattern that matches decides, ``default`` otherwise.

    Parameters
    ----------
    rules : mapping of shell-style patterns (``"features.*"``, ``"*.bias"``) to priors, or to None (deterministic).
    default : prior of the parameters that no pattern matches.

    Examples
    --------
    >>> ByName({"*.bias": Normal(10.0), "head.*": None}, default=Layerwise())
    """

    rules: Mapping[str, Any]
    default: Any = Normal()

    def __call__(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        return self.distribution(name, parameter, module)

    def distribution(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        for pattern, prior in self.rules.items():
            if fnmatchcase(name, pattern):
                return _named(prior, name, parameter, module)
        return None if self.default is None else self.default(name, parameter, module)

    def unmatched(self, net: nn.Module) -> list[str]:
        names = [name for name, _ in net.named_parameters()]
        lost = [pattern for pattern in self.rules if not any(fnmatchcase(name, pattern) for name in names)]
        return lost + (self.default.unmatched(net) if isinstance(self.default, Prior) else [])

    def config(self) -> dict[str, Any]:
        rules = {pattern: to_config(prior) for pattern, prior in self.rules.items()}
        return {"kind": "ByName", "rules": rules, "default": to_config(self.default)}


@dataclass(frozen=True)
class ByType(Prior):
    """Rules over the type of the module that owns the parameter; the most specific class decides.

    Parameters
    ----------
    rules : mapping of module classes (``nn.Conv2d``) or their names (``"Conv2d"``) to priors, or to None.
    default : prior of the parameters of all other modules.
    """

    rules: Mapping[Any, Any]
    default: Any = Normal()

    def __call__(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        return self.distribution(name, parameter, module)

    def distribution(self, name: str, parameter: Tensor, module: nn.Module) -> Any:
        rules = {_class_name(key): prior for key, prior in self.rules.items()}
        for cls in type(module).__mro__:
            if cls.__name__ in rules:
                return _named(rules[cls.__name__], name, parameter, module)
        return None if self.default is None else self.default(name, parameter, module)

    def unmatched(self, net: nn.Module) -> list[str]:
        known = {cls.__name__ for module in net.modules() for cls in type(module).__mro__}
        lost = [name for name in map(_class_name, self.rules) if name not in known]
        return lost + (self.default.unmatched(net) if isinstance(self.default, Prior) else [])

    def config(self) -> dict[str, Any]:
        rules = {_class_name(key): to_config(prior) for key, prior in self.rules.items()}
        return {"kind": "ByType", "rules": rules, "default": to_config(self.default)}


def _class_name(key: type | str) -> str:
    return key if isinstance(key, str) else key.__name__


def _named(prior: Any, name: str, parameter: Tensor, module: nn.Module) -> Any:
    """What a rule that names this parameter says: here BatchNorm's affine parameters do get the prior."""
    if prior is None:
        return None
    return prior.distribution(name, parameter, module) if isinstance(prior, Prior) else prior(name, parameter, module)


_KINDS = {
    cls.__name__: cls
    for cls in (
        Normal,
        Layerwise,
        HierarchicalNormal,
        Laplace,
        StudentT,
        ScaleMixture,
        Deterministic,
        ByName,
        ByType,
    )
}


def to_config(prior: PriorRule | None) -> dict[str, Any] | None:
    """JSON of a prior; a user's own callable is written by name only (``{"kind": "custom", ...}``)."""
    if prior is None:
        return None
    return prior.config() if isinstance(prior, Prior) else {"kind": "custom", "name": repr(prior)}


def from_config(config: Mapping[str, Any] | None) -> Any:
    """The prior that :func:`to_config` wrote; ValueError for a custom one, which only its author can give again."""
    if config is None:
        return None
    options = {key: value for key, value in config.items() if key != "kind"}
    if config["kind"] not in _KINDS:
        raise ValueError(f"Expected a prior of bayesnn.priors, got {options.get('name', config['kind'])}: pass prior=.")
    if "rules" in options:
        options["rules"] = {key: from_config(rule) for key, rule in options["rules"].items()}
        options["default"] = from_config(options["default"])
    built: Any = _KINDS[config["kind"]](**options)
    return built
