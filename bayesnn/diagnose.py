"""Is this the posterior? Diagnoses of draws and of variational distributions, with a verdict in words.

Draws are judged in *function space*, by what they predict at given inputs: weights of a net have symmetries, and
chains that agree on every prediction need not agree on one of them (Izmailov et al. 2021).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayesnn import diagnostics
from bayesnn.model import BayesianModel
from bayesnn.rng import generator
from bayesnn.source import Distribution

if TYPE_CHECKING:
    from bayesnn.posterior import Posterior

AGREE = 1.05  # R-hat of predictions above which chains disagree
ENOUGH = 100  # effective draws of all chains, below which quantiles are noise (Vehtari et al. 2021, section 4.1)
LEAST = 8  # draws of a chain
PARTS = 4  # of a chain, for its own R-hat
GRADIENTS = 50  # of all rows a chain, for the configurational temperature
CHUNK = 4096  # rows in one pass
MOST_WEIGHTS = 100  # beyond which importance weights of any q that is not the posterior are degenerate
DRAWS = 400  # of a distribution
GOOD_KHAT = 0.7  # Yao et al. 2018
Array = NDArray[np.float64]


@dataclass(frozen=True)
class DrawsDiagnosis:
    """Of stored draws, in function space. Arrays have the shape of the outputs at the inputs, (batch, ...).

    Attributes
    ----------
    rhat : rank-normalised split R-hat of class probabilities or conditional means; nan for one chain.
    chainwise_rhat : (chain, batch, ...), of each chain cut into four parts: whether it agrees with itself; nan for
        fewer than 16 draws.
    ess_bulk, ess_tail : effective sample sizes of all chains.
    mcse : Monte-Carlo standard error of the mean prediction.
    temperature : T that was asked for; None where nobody sampled.
    configurational_temperature : what the draws' gradients say of it, and its standard error; None without the data.
    kinetic_temperature : what the momenta say, in the mean over the history; None without momenta.
    """

    rhat: Array
    chainwise_rhat: Array
    ess_bulk: Array
    ess_tail: Array
    mcse: Array
    temperature: float | None
    configurational_temperature: tuple[float, float] | None
    kinetic_temperature: float | None

    @property
    def disagree(self) -> float:
        """Share of the inputs at which an output has R-hat above 1.05."""
        return float((self.rhat.reshape(len(self.rhat), -1) > AGREE).any(1).mean())

    @property
    def sound(self) -> bool:
        """Whether the verdict has nothing to complain of."""
        return self._of_chains()[1] and self._of_temperature() is None

    @property
    def verdict(self) -> str:
        """What the numbers say, and what to do."""
        hot = self._of_temperature()
        return "; ".join([self._of_chains()[0], *([hot] if hot is not None else [])])

    def _of_chains(self) -> tuple[str, bool]:
        """What is to be said of the chains, and whether they agree, with draws enough."""
        least = _least(self.ess_bulk)
        if len(self.chainwise_rhat) == 1:
            drifts = float((self.chainwise_rhat > AGREE).mean())
            said = "one chain cannot show that it has found all of the posterior: fit with chains=4"
            drift = f"; and it disagrees with itself on {drifts:.0%} of the predictions: run longer"
            return said + drift * (drifts > 0), False
        if self.disagree > 0:
            return f"the chains disagree on {self.disagree:.0%} of the inputs: run longer, or raise chains", False
        if least < ENOUGH:
            return f"the chains agree, but there are only {least:.0f} effective draws somewhere: run longer", False
        return f"the chains agree at every input, with {least:.0f} effective draws or more", True

    def _of_temperature(self) -> str | None:
        """What is to be said of the draws' temperature, where it is not the one that was asked for."""
        if not self.temperature or self.configurational_temperature is None:
            return None
        value, error = self.configurational_temperature
        if abs(value - self.temperature) <= 4 * error + 0.1 * self.temperature:
            return None
        cure = "lower lr, or raise batch_size" if value > self.temperature else "the burn-in was too short"
        return f"but the draws are at temperature {value:.2f} and not {self.temperature:g}: {cure}"

    def __str__(self) -> str:
        rows = [
            ("R-hat, largest", f"{_most(self.rhat):.3f}"),
            ("inputs with R-hat above 1.05", f"{self.disagree:.1%}"),
            ("R-hat within a chain, largest", f"{_most(self.chainwise_rhat):.3f}"),
            ("effective draws, bulk, least", f"{_least(self.ess_bulk):.0f}"),
            ("effective draws, tail, least", f"{_least(self.ess_tail):.0f}"),
            ("Monte-Carlo error, largest", f"{_most(self.mcse):.3g}"),
        ]
        if self.configurational_temperature is not None:
            rows.append(("temperature, by gradients", "{:.3f} +- {:.3f}".format(*self.configurational_temperature)))
        if self.kinetic_temperature is not None:
            rows.append(("temperature, by momenta", f"{self.kinetic_temperature:.3f}"))
        return "\n".join([self.verdict, *(f"  {name:<32}{value}" for name, value in rows)])


@dataclass(frozen=True)
class BoundDiagnosis:
    """Of a variational distribution q, in nats; of several chains the one with the highest bound.

    Attributes
    ----------
    elbo, error : E_q[log p(D, w) - log q(w)] and its Monte-Carlo standard error.
    importance_bound : log (1/S) sum_s p(D, w_s) / q(w_s), a tighter lower bound on the evidence in expectation
        (Burda, Grosse & Salakhutdinov 2016); what it gains over the ELBO is a lower bound on KL(q || posterior).
    khat : Pareto shape of the importance ratios (Yao, Vehtari, Simpson & Gelman 2018): below 0.7 q is near enough to
        the posterior to be corrected. None with more than 100 weights, where hardly any q is.
    weights : number of weights in q.
    """

    elbo: float
    error: float
    importance_bound: float
    khat: float | None
    weights: int

    @property
    def sound(self) -> bool:
        """Whether the verdict has nothing to complain of: k-hat is below 0.7, and not one without a meaning."""
        return self.khat is not None and self.khat < GOOD_KHAT

    @property
    def verdict(self) -> str:
        """What the numbers say, and what to do."""
        gap = self.importance_bound - self.elbo
        said = f"q is at least {gap:.3g} nats from the posterior"
        if self.khat is None:
            return f"{said}; k-hat means nothing with {self.weights} weights: compare with a sampler"
        if self.sound:
            return f"q is near the posterior (k-hat {self.khat:.2f})"
        return f"{said}, and too far to be corrected (k-hat {self.khat:.2f}): take a richer family, or a sampler"

    def __str__(self) -> str:
        khat = "not meaningful" if self.khat is None else f"{self.khat:.2f}"
        rows = [
            ("ELBO", f"{self.elbo:.2f} +- {self.error:.2f}"),
            ("importance-weighted bound", f"{self.importance_bound:.2f}"),
            ("Pareto k-hat", khat),
        ]
        return "\n".join([self.verdict, *(f"  {name:<32}{value}" for name, value in rows)])


def diagnose(posterior: Posterior, x: Any, draws: int | None = None, seed: int = 0) -> DrawsDiagnosis | BoundDiagnosis:
    """See :meth:`bayesnn.Posterior.diagnose`."""
    counts = posterior.num_draws
    if None in counts:
        return _of_distribution(posterior, draws or DRAWS, seed)
    if min(count for count in counts if count is not None) < LEAST:
        raise ValueError(
            f"Expected chains of {LEAST} draws or more, got {counts}: point estimates have nothing to diagnose, "
            "and of few draws nothing can be said."
        )
    values = posterior.predict(x, draws=draws).draws.double().cpu().numpy()
    method = posterior.info.get("method", {})
    kinetic = [row["kinetic_temperature"] for row in posterior.history if "kinetic_temperature" in row]
    temperature = float(method["temperature"]) if "temperature" in method else None
    return DrawsDiagnosis(
        rhat=diagnostics.rhat(values) if len(values) > 1 else np.full(values.shape[2:], np.nan),
        chainwise_rhat=_within(values),
        ess_bulk=diagnostics.ess(values, "bulk"),
        ess_tail=diagnostics.ess(values, "tail"),
        mcse=diagnostics.mcse_mean(values),
        temperature=temperature,
        configurational_temperature=configurational_temperature(posterior) if temperature is not None else None,
        kinetic_temperature=float(np.mean(kinetic[len(kinetic) // 2 :])) if kinetic else None,
    )


def _within(values: Array) -> Array:
    """R-hat of each chain's parts, (chain, batch, ...); nan where they are shorter than four draws."""
    chains, draws, *shape = values.shape
    if draws < 4 * PARTS:
        return np.full((chains, *shape), np.nan)
    parts = values[:, : draws // PARTS * PARTS].reshape(chains, PARTS, -1, *shape)
    return np.stack([diagnostics.rhat(each) for each in parts])


def configurational_temperature(posterior: Posterior, draws: int = GRADIENTS) -> tuple[float, float] | None:
    """E[w . grad U(w)] / d over the draws, which is T, and its standard error (Wenzel et al. 2020, appendix I).

    By partial integration of exp(-U / T), the virial theorem. It would hold for w - c with any constant c as well, but
    not for a c that the chain itself gives, which is nearer and would make the variance smaller: where weights move
    slowly the draws lean towards their own mean, and the temperature comes out too low. None where the training rows
    are not in memory, or were transformed at random: U is then a mean over the transforms.
    """
    if posterior.train is None or posterior.info.get("augment") is not None:
        return None
    x, y = posterior.train
    weight = posterior.num_data / len(x)
    model = posterior.model.copy()
    names = list(model.bayesian_parameters())
    found = []
    for chain in posterior.states(draws):
        values = []
        for state in chain:
            model.load_state(state)
            weights = torch.cat([state[name].flatten().double() for name in names])
            values.append(float(weights @ _potential_gradient(model, names, x, y, weight)) / len(weights))
        found.append(values)
    shortest = min(map(len, found))
    array = np.array([values[:shortest] for values in found])
    return float(array.mean()), float(diagnostics.mcse_mean(array))


def _potential_gradient(model: BayesianModel, names: list[str], x: Tensor, y: Tensor, weight: float) -> Tensor:
    """Gradient of U = -log p(w, D) by the weights that have a prior, one float64 vector; rows count ``weight`` each."""
    parameters = [model.bayesian_parameters()[name] for name in names]
    model.zero_grad()
    with torch.enable_grad():
        (-model.log_prior()).backward()
        for rows, targets in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
            (-weight * model.log_likelihood(rows, targets).sum()).backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    return torch.cat([grad.flatten().double() for grad in grads])


@torch.no_grad()
def _of_distribution(posterior: Posterior, draws: int, seed: int) -> BoundDiagnosis:
    if posterior.train is None:
        raise ValueError("Expected the training rows in memory for the ELBO, got a posterior without: fit it anew.")
    if posterior.info.get("augment") is not None:
        raise ValueError("Expected a fit without augment= for the ELBO, got one whose rows were transformed at random.")
    x, y = posterior.train
    found, weight = [], posterior.num_data / len(x)
    for chain, source in enumerate(posterior.sources):
        assert isinstance(source, Distribution)
        model, ratios = source.bind(posterior.model).copy(), []
        names = list(model.log_priors)
        for state in source.states(draws, generator(seed, chain, device=x.device)):
            model.load_state(state)
            rows = zip(x.split(CHUNK), y.split(CHUNK), strict=True)
            log_joint = float(model.log_prior()) + weight * sum(
                float(model.log_likelihood(*both).double().sum()) for both in rows
            )
            ratios.append(log_joint - source.log_prob(state))
        found.append(_bound(np.array(ratios), sum(posterior.model.state()[name].numel() for name in names)))
    return max(found, key=lambda bound: bound.elbo)


def _bound(log_ratios: Array, weights: int) -> BoundDiagnosis:
    top = log_ratios.max()
    return BoundDiagnosis(
        elbo=float(log_ratios.mean()),
        error=float(log_ratios.std(ddof=1) / math.sqrt(len(log_ratios))),
        importance_bound=float(top + math.log(np.exp(log_ratios - top).mean())),
        khat=_khat(log_ratios) if weights <= MOST_WEIGHTS else None,
        weights=weights,
    )


def _khat(log_ratios: Array) -> float:
    """ArviZ's Pareto-smoothed importance sampling: of the ratios in 0.x, of their reciprocals in 1.x."""
    import arviz as az

    if int(az.__version__.split(".")[0]) >= 1:
        return float(import_module("arviz_stats.base").array_stats.psislw(-log_ratios)[1])
    return float(az.psislw(log_ratios)[1])


def _least(values: Array) -> float:
    return float(np.nanmin(values)) if np.isfinite(values).any() else math.nan


def _most(values: Array) -> float:
    return float(np.nanmax(values)) if np.isfinite(values).any() else math.nan
