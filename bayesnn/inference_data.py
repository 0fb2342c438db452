"""A posterior as an ArviZ data set (InferenceData in ArviZ 0.x, DataTree in 1.x)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bayesnn.data.dataset import as_inputs
from bayesnn.posterior import Posterior
from bayesnn.rng import generator, isolated
from bayesnn.source import Draws, evenly_spaced

if TYPE_CHECKING:
    from bayesnn.model import State

# The first axis after chain and draw; what follows, of several targets or of images, has ArviZ's own names.
DIMS = {"y": ["row"], "x": ["row"]}


def to_arviz(
    posterior: Posterior, data: tuple[Any, Any] | None, weights: bool | Sequence[str], draws: int | None
) -> Any:
    """See :meth:`bayesnn.Posterior.to_arviz`."""
    names = _chosen(posterior, weights)
    x, y = _rows(posterior, data)
    predictive = posterior.predict(x, draws=draws)
    states = posterior.states(draws)
    shortest = min(len(chain) for chain in states)
    if any(len(chain) > shortest for chain in states):
        lengths = [len(c) for c in states]
        warnings.warn(f"Chains have {lengths} draws: the last {shortest} of each are kept.", stacklevel=3)
    counts = [len(chain) for chain in states]

    def by_chain(values: torch.Tensor) -> np.ndarray[Any, Any]:
        parts = values.split(counts)
        return torch.stack([part[len(part) - shortest :] for part in parts]).cpu().numpy()

    log_likelihood = predictive.log_likelihood(y)
    log_prior = _log_prior(posterior, states)
    # Of the training rows log p(w, D) as it was fitted, whatever num_data was.
    weight = posterior.num_data / len(y) if data is None else 1.0
    groups: dict[str, dict[str, Any]] = {
        "posterior": {"log_prior": by_chain(log_prior)},
        "posterior_predictive": {"y": by_chain(_replicates(predictive))},
        "log_likelihood": {"y": by_chain(log_likelihood)},
        "sample_stats": {"lp": by_chain(log_prior + weight * log_likelihood.double().sum(1).cpu())},
        "observed_data": {"y": predictive._targets(y).cpu().numpy()},  # shaped as the replicates are
        "constant_data": {"x": as_inputs(x).cpu().numpy()},
    }
    groups["sample_stats"] |= {
        "potential_energy": -groups["sample_stats"]["lp"],
        **_recorded(posterior, counts, shortest),
    }
    prior = Draws.stack(list(posterior.model.prior_states(shortest, seed=0)))
    before = Posterior(posterior.model, [prior], 0, posterior.target).predict(x)
    groups["prior_predictive"] = {"y": _replicates(before)[None].cpu().numpy()}
    of_prior = list(prior.states(None, torch.Generator()))  # stored: it draws nothing
    groups["prior"] = {"log_prior": _log_prior(Posterior(posterior.model, [prior], 0), [of_prior])[None].numpy()}
    kept = [chain[len(chain) - shortest :] for chain in states]
    for name in names:
        groups["prior"][name] = prior.stacked[name][None].cpu().numpy()
        values = torch.stack([torch.stack([state[name] for state in chain]) for chain in kept])
        groups["posterior"][name] = values.cpu().numpy()
    return _from_groups(groups)


def _chosen(posterior: Posterior, weights: bool | Sequence[str]) -> list[str]:
    """Names of what goes into the groups posterior and prior: the likelihood's own, and the chosen weights."""
    have = list(posterior.model.log_priors)
    if isinstance(weights, bool):
        return [name for name in have if weights or not name.startswith("net.")]
    wanted = {name if name in have else f"net.{name}" for name in ([weights] if isinstance(weights, str) else weights)}
    missing = sorted(wanted - set(have))
    if missing:
        known = ", ".join(name.removeprefix("net.") for name in have)
        raise ValueError(f"Expected weights of {known}, got {missing[0].removeprefix('net.')!r}: name these.")
    return [name for name in have if name in wanted or not name.startswith("net.")]


def _recorded(posterior: Posterior, counts: list[int], shortest: int) -> dict[str, np.ndarray[Any, Any]]:
    """What the samplers wrote down with each draw, (chain, draw); nothing where a chain has another number of rows."""
    chains = posterior.sample_stats
    if len(chains) != len(counts) or any(not rows for rows in chains):
        return {}
    names = [name for name in chains[0] if all(name in rows for rows in chains)]
    found: dict[str, np.ndarray[Any, Any]] = {}
    for name in names:
        values = []
        for rows, count, stored in zip(chains, counts, posterior.num_draws, strict=True):
            if stored is None or len(rows[name]) < stored:
                return {}
            chosen = np.asarray(rows[name])[evenly_spaced(count, stored)]
            values.append(chosen[len(chosen) - shortest :])
        found[name] = np.stack(values)
    return found


def _rows(posterior: Posterior, data: tuple[Any, Any] | None) -> tuple[Any, Any]:
    if data is not None:
        return data[0], data[1]
    if posterior.train is None:
        raise ValueError(
            "Expected data=(x, y): this posterior does not hold its training data (loaded, or from a loader)."
        )
    x, y = posterior.train
    return x, (posterior.target.inverse(y.double()) if posterior.target is not None else y)


def _replicates(predictive: Any) -> torch.Tensor:
    """One sample of the targets for each draw, (draws of all chains, batch, ...)."""
    # A key of its own: fits have (seed, chain, 0 to 2, ...), and Predictive.sample has (seed, 0, 3).
    stream = generator(0, 0, 4)
    with isolated(stream):
        parts = [predictive._model.likelihood.distribution(params).sample() for _, params in predictive._blocks()]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def _log_prior(posterior: Posterior, states: list[list[State]]) -> torch.Tensor:
    """log p(w) of each draw, with log p(tau) where a precision is inferred: the draw's own, (draws of all chains,)."""
    values = []
    for source, chain in zip(posterior.sources, states, strict=True):
        model = source.bind(posterior.model).copy()
        for state in chain:
            model.load_state(state)
            values.append(float(model.log_prior()))
    return torch.tensor(values, dtype=torch.float64)


def _from_groups(groups: dict[str, dict[str, Any]]) -> Any:
    import arviz as az

    if int(az.__version__.split(".")[0]) >= 1:
        # On 0.x this call succeeds as well, and puts every group into `posterior`.
        return az.from_dict(groups, dims=DIMS)
    by_name: dict[str, Any] = groups
    return az.from_dict(**by_name, dims=DIMS)
