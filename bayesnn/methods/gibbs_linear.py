"""The exact Gibbs sampler of a Bayesian linear model: one weight after another, or all at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bayesnn.errors import at_least, fraction, unknown
from bayesnn.methods.base import Method, Plan, Run, evenly, split_normal
from bayesnn.methods.gibbs import NOISE, Precisions, has_conjugate_noise, noise_of
from bayesnn.model import BayesianModel, State
from bayesnn.rng import Streams
from bayesnn.source import Source

SCANS = ("coordinate", "block")


@dataclass(frozen=True)
class GibbsLinear(Method):
    """Gibbs sampling of y = W x + b + noise, for a net that is one ``nn.Linear`` and Normal noise of precision tau.

    Each step is a sweep: every column w_j of W (b is the column of the constant 1) from its law given all others,

        w_j | rest ~ Normal((tau x_j' r_j + lambda_j m_j) / p_j, 1 / p_j),    p_j = tau |x_j|^2 + lambda_j,

    r_j = y - W x + w_j x_j the residual without it and Normal(m_j, 1 / lambda_j) its prior; then, where they are
    inferred, the precisions of the prior and of the noise (:mod:`bayesnn.methods.gibbs`). A sweep costs O(N P) for P
    columns, all rows each time, and correlated columns make the chain slow: that is why nets are not sampled so.
    ``scan="block"`` draws all columns at once by a Cholesky factor, O(N P + P^3), after O(N P^2) once: with known
    precisions the draws are independent.

    Parameters
    ----------
    scan : ``"coordinate"`` or ``"block"``.
    burn_in : share of the sweeps that are not kept.
    draws : number of draws to keep, evenly spaced over the sweeps after the burn-in.

    References
    ----------
    Geman & Geman (1984); Gelman et al., Bayesian Data Analysis (3rd ed., 2013).
    """

    access: ClassVar[Literal["minibatch", "full"]] = "full"
    is_sampler: ClassVar[bool] = True
    infers_precisions: ClassVar[bool] = True
    default_chains: ClassVar[int] = 4
    default_steps: ClassVar[int] = 2000

    scan: str = "coordinate"
    burn_in: float = 0.2
    draws: int = 1000

    def __post_init__(self) -> None:
        if self.scan not in SCANS:
            raise unknown("scan", self.scan, SCANS)
        fraction("burn_in", self.burn_in)
        at_least("draws", self.draws, 1)

    def kept_steps(self, steps: int) -> Sequence[int]:
        """Numbers (from 1) of the sweeps that are kept; the last is one of them."""
        return evenly(range(math.ceil(self.burn_in * steps) + 1, steps + 1), self.draws, None)

    def check(self, model: BayesianModel, plan: Plan) -> None:
        if len(plan.out_shape) > 1:
            raise ValueError(
                f"Expected rows (batch, features) for GibbsLinear, got outputs {('batch', *plan.out_shape)}: flatten x."
            )
        linear = [module for module in model.net.modules() if next(module.parameters(recurse=False), None) is not None]
        if not (isinstance(model.net, nn.Linear) and len(linear) == 1):
            raise ValueError(
                f"Expected a net that is one nn.Linear for GibbsLinear, got {type(model.net).__name__}: its weights "
                "have no conditional law in closed form; use SGHMC or NUTS."
            )
        if not has_conjugate_noise(model):
            raise ValueError(
                f"Expected Normal noise, fixed or with a GammaPrecision prior, for GibbsLinear, got "
                f"{noise_of(model)}: use likelihoods.Normal(), or another method."
            )
        frozen = [name for name, p in model.net.named_parameters() if not p.requires_grad]
        if frozen:
            raise ValueError(
                f"Expected no frozen parameters for GibbsLinear, got {frozen[0]!r}: take its part off the targets, "
                "and build the nn.Linear without it."
            )
        _, others = split_normal(model)
        others = [name for name in others if name != NOISE]
        if others or model.deterministic:
            raise ValueError(
                f"Expected a Normal or HierarchicalNormal prior of {(others + model.deterministic)[0]!r} for "
                "GibbsLinear, got another one or none: give it one."
            )

    def draw_bytes(self, model: BayesianModel, plan: Plan) -> int:
        return len(self.kept_steps(plan.steps)) * super().draw_bytes(model, plan)

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _GibbsRun(self, model, plan, streams, init)


class _GibbsRun(Run):
    def __init__(
        self, method: GibbsLinear, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None
    ) -> None:
        super().__init__(model, plan, streams)
        if init is not None:
            model.load_state(init.last())
        self._method, self.optimizers = method, []
        self._precisions = Precisions(model, [], plan.num_data, streams.noise)
        self._kept = frozenset(method.kept_steps(plan.steps))
        self._step = 0
        self._design: Tensor | None = None
        self._gram: Any = None
        self._cross: Any = None

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        net: Any = self.model.net
        if self._design is None:
            self._design = x if net.bias is None else torch.cat((x, x.new_ones(len(x), 1)), 1)
            self._squares = self._design.square().sum(0)
            # Of collinear columns single precision would lose the prior beside the data, and with it the factor.
            X, targets = self._design.double(), y.reshape(len(y), -1).double()
            if self._method.scan == "block":
                self._gram, self._cross = X.T @ X, X.T @ targets
        X, y = self._design, y.reshape(len(y), -1)
        W = net.weight if net.bias is None else torch.cat((net.weight, net.bias[:, None]), 1)
        W = W.T.clone()  # (columns of X, outputs)
        sweep = self._coordinates if self._method.scan == "coordinate" else self._block
        residuals = sweep(X, y, W, *self._prior())
        net.weight.copy_(W[: net.in_features].T)
        if net.bias is not None:
            net.bias.copy_(W[-1])
        self._precisions.weights(temperature=1.0)
        if NOISE in self.model.log_priors:
            self._precisions.noise_given(residuals.numel(), residuals.square().sum(), temperature=1.0)
        self._step += 1
        self.gradient_evaluations += 1  # a sweep reads the data as often as one gradient of all rows
        return -self.model.log_likelihood(x, y.squeeze(1)).mean()

    def _tau(self) -> float:
        net: Any = self.model.net
        return float(self.model.likelihood.params(net.weight.new_zeros(1, 1))["scale"][0] ** -2)

    def _prior(self) -> tuple[Tensor, Tensor]:
        """Means and precisions (columns, outputs)."""
        normal, _ = split_normal(self.model)
        parts: list[list[Tensor]] = [[], []]
        for name, p in self.model.net.named_parameters():
            for part, value in zip(parts, normal[f"net.{name}"], strict=True):
                whole = value.to(p).expand(p.shape)
                part.append(whole.T if p.dim() == 2 else whole[None])
        loc, precision = (torch.cat(part) for part in parts)
        return loc, precision

    def _normal(self, like: Tensor) -> Tensor:
        return torch.empty_like(like).normal_(generator=self.streams.noise)

    def _coordinates(self, X: Tensor, y: Tensor, W: Tensor, loc: Tensor, precision: Tensor) -> Tensor:
        residuals, tau = y - X @ W, self._tau()
        noise = self._normal(W)
        for j in range(len(W)):
            p = tau * self._squares[j] + precision[j]
            mean = (tau * (X[:, j] @ residuals + self._squares[j] * W[j]) + precision[j] * loc[j]) / p
            new = mean + noise[j] * p.rsqrt()
            residuals -= torch.outer(X[:, j], new - W[j])
            W[j] = new
        return residuals

    def _block(self, X: Tensor, y: Tensor, W: Tensor, loc: Tensor, precision: Tensor) -> Tensor:
        tau, noise, loc, precision = self._tau(), self._normal(W).double(), loc.double(), precision.double()
        gram, cross = tau * self._gram, tau * self._cross
        for k in range(W.shape[1]):
            root = torch.linalg.cholesky(gram + torch.diag(precision[:, k]))
            mean = torch.cholesky_solve((cross[:, k] + precision[:, k] * loc[:, k])[:, None], root)
            W[:, k] = (mean + torch.linalg.solve_triangular(root.T, noise[:, k : k + 1], upper=True))[:, 0]
        return y - X @ W

    def draw(self) -> list[State]:
        return self.snapshot() if self._step in self._kept else []

    def snapshot(self) -> list[State]:
        return [self.model.state()]
