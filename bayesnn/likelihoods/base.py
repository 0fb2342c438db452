"""The contract of a likelihood: outputs of the net -> parameters of the targets' distribution -> log density.

Shapes: a net gives ``(batch, outputs)``. A net with one output gives scalar targets, and then both ``(batch,)`` and
``(batch, 1)`` are taken for targets and outputs, and ``(batch,)`` is given back: nothing is ever broadcast to
``(batch, batch)``. A net for images gives ``(batch, outputs, height, width)``, or other axes after the outputs: each
pixel has its own distribution, and given the net they are independent. Parameters of the distribution may carry draws
in front, ``(draw, batch, ...)``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]


def variance_over_draws(values: Tensor) -> Tensor:
    """Variance along axis 0, with 1/S, of (draw, ...).

    Of deviations from the mean, centred once more, as a mean of numbers far from zero is rounded. On a CPU these passes
    over the first axis take a tenth of the time of ``torch.var``.
    """
    # A mean in bfloat16 is off by up to 1/256 of itself.
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    deviation = wide - wide.mean(0)
    return deviation.sub_(deviation.mean(0)).square_().mean(0).to(values.dtype)


class Likelihood(nn.Module, ABC):
    """Base class of likelihoods. Its own parameters (a noise scale) are inferred with the weights.

    Attributes
    ----------
    kind : ``"classes"`` (uncertainty in nats), ``"real"`` or ``"count"`` (uncertainty as variances).
    location_scale : whether targets may be standardised: the density has a ``loc`` and a ``scale``.
    lower_bound : the least value a target can have.
    """

    kind: ClassVar[str] = "real"
    location_scale: ClassVar[bool] = False
    lower_bound: ClassVar[float] = -math.inf

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = options

    @abstractmethod
    def params(self, outputs: Tensor) -> Params:
        """Parameters of the targets' distribution, each of the targets' shape (classes: one axis more, the last).

        ``outputs`` are those of one draw of the weights, (batch,) or (batch, outputs, ...): axis 1 is the outputs'.
        """

    @abstractmethod
    def distribution(self, params: Params) -> Any:
        """The distribution of single target elements (event shape ``()``), for parameters with any leading axes."""

    @abstractmethod
    def check_targets(self, y: Tensor, num_outputs: int, pixels: Sequence[int] = ()) -> Tensor:
        """``y`` in the form that ``log_prob`` takes, or a ValueError: expected, got, what to do.

        ``num_outputs`` and ``pixels`` are the net's: its outputs are (batch, num_outputs, *pixels).
        """

    def targets_for(self, y: Tensor, row: Sequence[int]) -> Tensor:
        """:meth:`check_targets` for a net whose outputs for one input have the shape ``row``, or () for a number."""
        width, *pixels = row or (1,)
        return self.check_targets(y, width, tuple(pixels)) if pixels else self.check_targets(y, width)

    def target_shape(self, outputs: Tensor) -> torch.Size:
        """Shape of the targets that ``log_prob`` takes with these outputs of the net."""
        return scalar_shape(outputs.shape)

    def takes(self, outputs: Tensor, y: Tensor) -> bool:
        """Whether ``y`` has the shape that ``log_prob`` takes with these outputs."""
        return y.shape == self.target_shape(outputs)

    def is_density(self, y: Tensor) -> bool:
        """Whether ``log_prob`` of such targets is the logarithm of a density of theirs, that of ``distribution``.

        Where it is not, as where rows are weighted, Pyro's model has a factor in place of an observed sample.
        """
        return True

    def learn(self, y: Tensor | None, num_outputs: int) -> None:
        """Take from the targets of the training part, in the form of ``check_targets``, what was left to them.

        ``fit`` calls it, with None where a loader has the targets; then a ValueError, if something was left to them.
        """

    def log_prob(self, outputs: Tensor, y: Tensor) -> Tensor:
        """log p(y | outputs), summed over a target's event dimensions, shape (batch,).

        The targets are those of :meth:`check_targets`; this is the hot loop and checks nothing.
        """
        return sum_events(self.elementwise_log_prob(self.params(outputs), y))

    def elementwise_log_prob(self, params: Params, y: Tensor) -> Tensor:
        """log density of each element of the targets, with the leading axes of ``params``."""
        log_prob: Tensor = self.distribution(params).log_prob(y)
        return log_prob

    def mixture_log_prob(self, params: Params, y: Tensor) -> Tensor:
        """log p(y_i | x_i, D) of the equally weighted mixture over axis 0, the draws, shape (batch,)."""
        log_prob = self.elementwise_log_prob(params, y)
        log_prob = log_prob if log_prob.dim() == 2 else log_prob.flatten(2).sum(2)
        return log_prob.logsumexp(0) - math.log(len(log_prob))

    def labels(self, y: Tensor) -> Tensor:
        """The classes of targets, for a count of those that are right: of soft labels the most probable ones."""
        return y

    def mean(self, params: Params) -> Tensor:
        """E[y | w] for each draw, shape (draw, batch, ...); classes: their probabilities."""
        mean: Tensor = self.distribution(params).mean
        return mean

    def uncertainty(self, params: Params) -> tuple[Tensor, Tensor]:
        """(aleatoric, epistemic) of the equally weighted mixture over axis 0, the draws.

        Here variances, by the law of total variance: E[Var(y | w)] and Var(E[y | w]) with 1/S. Classes override this.
        """
        aleatoric = self.distribution(params).variance.mean(0)
        if not torch.isfinite(aleatoric).all():
            raise ValueError(f"Expected a finite variance, got {self!r} with an infinite one: use .quantile() instead.")
        return aleatoric, variance_over_draws(self.mean(params))

    def cdf(self, params: Params, y: Tensor) -> Tensor:
        """P(target <= y) for each draw."""
        cdf: Tensor = self.distribution(params).cdf(y)
        return cdf

    def median(self, params: Params) -> Tensor:
        """A centre of the distribution for each draw: where the search for quantiles starts."""
        return params["loc"]

    def to_units(self, params: Params, mean: Tensor, std: Tensor) -> Params:
        """Parameters of ``mean + std * y``: the density in the targets' own units, Jacobian included."""
        return {**params, "loc": mean + std * params["loc"], "scale": std * params["scale"]}

    def priors(self) -> dict[str, Any]:
        """Prior of each of the likelihood's own parameters, by its name here."""
        return {}

    def config(self) -> dict[str, Any]:
        options = {key: _plain(value) for key, value in self._options.items()}
        return {"kind": type(self).__name__, **options}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self._options.items())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"


def _plain(value: Any) -> Any:
    return value.config() if hasattr(value, "config") else value


def scalar_outputs(outputs: Tensor) -> Tensor:
    """(batch, 1) -> (batch,): a net with one output has scalar targets."""
    return outputs.squeeze(-1) if outputs.dim() == 2 and outputs.shape[-1] == 1 else outputs


def scalar_shape(shape: torch.Size) -> torch.Size:
    """The shape that :func:`scalar_outputs` gives."""
    return torch.Size(shape[:-1]) if len(shape) == 2 and shape[-1] == 1 else shape


def sum_events(log_prob: Tensor) -> Tensor:
    """(batch, ...) -> (batch,): a target's elements are independent given the net's outputs."""
    return log_prob if log_prob.dim() == 1 else log_prob.flatten(1).sum(1)


def shaped_targets(name: str, y: Tensor, num_targets: int, pixels: Sequence[int] = ()) -> Tensor:
    """Targets (batch,) or (batch, num_targets), with (batch, 1) as (batch,); else a ValueError.

    Of images (batch, num_targets, *pixels), for one target a pixel (batch, *pixels) as well.
    """
    if not pixels and y.dim() == 2 and y.shape[1] == 1:
        y = y.squeeze(1)
    if pixels and num_targets == 1 and y.shape[1:] == torch.Size(pixels):
        y = y.unsqueeze(1)
    scalar = y.dim() == 1 and num_targets == 1 and not pixels
    if not scalar and y.shape[1:] != torch.Size((num_targets, *pixels)):
        wanted = ", ".join(map(str, ("batch", num_targets, *pixels)))
        raise ValueError(
            f"Expected targets of shape ({wanted}) for a net whose outputs give {num_targets} targets "
            f"{'a pixel ' if pixels else ''}under {name}, got {tuple(y.shape)}: change the net's num_outputs or the "
            "targets."
        )
    return y


def real_targets(name: str, y: Tensor, num_targets: int, pixels: Sequence[int] = ()) -> Tensor:
    """:func:`shaped_targets` that are floating and finite."""
    if not y.is_floating_point():
        raise ValueError(f"Expected floating-point targets for {name}, got {y.dtype}: use y.float().")
    return shaped_targets(name, y, num_targets, pixels)


def from_config(config: Mapping[str, Any]) -> Likelihood:
    """The likelihood that ``likelihood.config()`` wrote."""
    import bayesnn.likelihoods as known
    from bayesnn.likelihoods.noise import from_config as noise_from_config

    options = {key: value for key, value in config.items() if key != "kind"}
    kind = getattr(known, str(config["kind"]), None)
    if not (isinstance(kind, type) and issubclass(kind, Likelihood)) or kind is Likelihood:
        raise ValueError(f"Expected a likelihood of bayesnn.likelihoods, got {config['kind']}: pass likelihood=.")
    if options.get("prior") is not None:
        options["prior"] = noise_from_config(options["prior"])
    return kind(**options)
