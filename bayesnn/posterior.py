"""Posterior: what ``fit`` returns. Draws of the weights, or distributions over them, one source a chain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from bayesnn.data.augment import Augment, in_units
from bayesnn.data.batches import Loader
from bayesnn.data.dataset import Data, all_finite, as_inputs
from bayesnn.data.standardize import Standardize
from bayesnn.errors import at_least, first_line, not_negative
from bayesnn.history import History
from bayesnn.model import BayesianModel, State
from bayesnn.predictive import Predictive
from bayesnn.priors import Independent
from bayesnn.rng import generator, isolated
from bayesnn.source import NormalSource, Source

if TYPE_CHECKING:
    from bayesnn.diagnose import BoundDiagnosis, DrawsDiagnosis

DEFAULT_DRAWS = 100


class Posterior:
    """The posterior over a model's weights.

    Attributes
    ----------
    sources : one source of draws a chain.
    history : a row (dict) for each epoch of each chain: chain, epoch, loss (mean minibatch negative log likelihood,
        nats; of standardised targets, in whose own units ``train_nll`` is), lr, seconds, validation metrics where
        there was a validation part, and in some rows ``gradient_norm/LAYER`` of each layer, the norm of the gradient of
        the mean negative log likelihood. ``print(history)`` is a table, ``history.to_csv("file")`` all of it.
    info : method and its options, seed, budget, gradient evaluations, seconds, and chains that were cut short.
    num_data : N, by which the likelihood was scaled: rows of the training part, or what ``fit`` was told.
    target : affine map of standardised targets, or None.
    train : (x, y) that the model was fitted to, where it lies in memory; not saved.
    """

    def __init__(
        self,
        model: BayesianModel,
        sources: list[Source],
        num_data: int,
        target: Standardize | None = None,
        history: list[dict[str, Any]] | None = None,
        info: dict[str, Any] | None = None,
        train: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.model = model.copy().eval()
        self.sources, self.num_data, self.target, self.train = sources, num_data, target, train
        self.history = history if isinstance(history, History) else History(history or [])
        self.info = info if info is not None else {}

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return len(self.sources)

    @property
    def num_draws(self) -> list[int | None]:
        """Stored draws of each chain; None where the chain ends in a distribution."""
        return [source.num_draws for source in self.sources]

    @property
    def sample_stats(self) -> list[dict[str, list[float]]]:
        """What the sampler wrote down with each draw, by chain and name; {} where the method has no such numbers.

        Of minibatch samplers ``lr``, ``temperature``, ``gradient_norm`` (of the gradient of U = -log p(w, D) by which
        the step to the draw went, estimated on its minibatch) and, with momenta, ``kinetic_temperature``; chains that
        run as one have the first two. Of full-batch ones ``step_size``, ``temperature``, and of HMC and NUTS
        ``acceptance_rate``. A killed run that is loaded from its store has none of its last chain.
        """
        recorded: list[dict[str, list[float]]] = self.info.get("sample_stats", [])
        return recorded

    def __repr__(self) -> str:
        method = self.info.get("method", {}).get("kind", "given")
        counts = self.num_draws
        kept = f"{counts[0]} draws" if len(set(counts)) == 1 else f"{counts} draws"
        draws = "a distribution" if None in counts else kept
        chains = f"{self.num_chains} chain{'s' * (self.num_chains > 1)}"
        return f"Posterior({method}, {chains} of {draws}, {self._weights()} weights)"

    def _weights(self) -> int:
        return self.model.num_weights()

    def predict(
        self,
        x: Any,
        draws: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        augment: Augment | None = None,
        transforms: int = 8,
    ) -> Predictive:
        """The predictive distribution of the targets of ``x``.

        Parameters
        ----------
        x : inputs (batch, ...): a tensor, array, data frame or list.
        draws : draws a chain: evenly spaced ones of those stored (all by default), or samples of a distribution
            (100 by default).
        batch_size : inputs in one forward pass; by default a mebibyte of them, so that what the layers of an image net
            make of it stays in the caches, and at most 1,000; on a GPU 64 mebibytes, and at most 16,384.
        seed : of the samples of a distribution, and of the transforms; the same seed gives the same answer.
        augment : test-time augmentation: a random transform (x, generator) -> x as in ``fit``. Each draw of the weights
            then says p(y | x, w) = 1/T sum_t p(y | t(x), w), a mean of class probabilities, over the same T transforms
            of each input. What they disagree on is aleatoric: only what the draws disagree on afterwards is epistemic.
        transforms : T. The plain input is one of them only where ``augment`` happens to give it.

        Returns
        -------
        Predictive

        Raises
        ------
        ValueError, TypeError : inputs that the net does not take; ``augment`` for targets that are no classes, one an
            input, or that changes the inputs' shape.
        """
        counts = self._counts(draws)
        chains = [
            partial(_iterate, source, count, seed, chain, self._device())
            for chain, (source, count) in enumerate(zip(self.sources, counts, strict=True))
        ]
        inputs = self._inputs(x)
        # Draws are written into a net of the answer's own: two threads may predict at once, a net that reaches a weight
        # by another way than its name sees the draw as well, and a draw from a file lies in memory as any other does.
        with torch.inference_mode(False):
            model = self.model.copy()
            models = [source.bind(model) for source in self.sources]
        tta = (
            None if augment is None else (self._in_units(augment, inputs), at_least("transforms", transforms, 1), seed)
        )
        return Predictive(model, chains, counts, inputs, self.target, batch_size, models, tta)

    def diagnose(self, x: Any, draws: int | None = None, seed: int = 0) -> DrawsDiagnosis | BoundDiagnosis:
        """Whether this is the posterior: ``print`` it for a verdict in words and the numbers behind it.

        Of stored draws: R-hat, effective sample sizes and Monte-Carlo errors of what they predict at ``x``, and of a
        sampler the temperature that the draws are at (it takes up to 50 gradients of all training rows a chain). Of a
        variational distribution: the ELBO, the importance-weighted bound and k-hat, on the training rows.

        Parameters
        ----------
        x : inputs (batch, ...) at which the predictions are compared: test inputs.
        draws : draws a chain, as in :meth:`predict`; 400 of a distribution by default.
        seed : of the samples of a distribution.

        Raises
        ------
        ValueError : point estimates, or chains of fewer than 8 draws; a distribution without a density over the
            weights, or without its training rows in memory.
        """
        from bayesnn.diagnose import diagnose

        return diagnose(self, x, draws, seed)

    def states(self, draws: int | None = None, seed: int = 0) -> list[list[State]]:
        """Draws of each chain as named tensors, copies of what is stored."""
        return [
            [
                {name: value.clone() for name, value in state.items()}
                for state in _iterate(source, count, seed, chain, self._device())
            ]
            for chain, (source, count) in enumerate(zip(self.sources, self._counts(draws), strict=True))
        ]

    def net(self, chain: int = 0, draw: int = -1, seed: int = 0) -> nn.Module:
        """The net with the weights of one draw, an ordinary module of its own, in eval mode.

        Of a distribution, draw ``k`` is the k-th sample of ``seed``, and -1 is its mean.
        """
        if not 0 <= chain < self.num_chains:
            raise ValueError(f"Expected chain in [0, {self.num_chains}), got {chain}.")
        source, stream = self.sources[chain], generator(seed, chain, device=self._device())
        if source.num_draws is not None:
            if not -source.num_draws <= draw < source.num_draws:
                raise ValueError(f"Expected draw in [-{source.num_draws}, {source.num_draws}), got {draw}.")
            state = source.state(draw % source.num_draws, stream)
        else:
            state = source.last() if draw == -1 else source.state(at_least("draw", draw, 0), stream)
        model = source.bind(self.model).copy()
        model.load_state(state)
        return model.net

    def as_prior(self, drift: float = 0.0, draws: int | None = None, seed: int = 0) -> Independent:
        """Yesterday's posterior as today's prior: learning goes on when the data come one batch after another.

        Each weight ~ Normal(m, s^2 + drift^2), m and s^2 its posterior mean and variance: those of the factors of
        mean-field VI (variational continual learning: Nguyen et al. 2018), or moments of all chains' draws.
        With ``drift`` > 0 the weights walk at random between one batch and the next, and what was learned long ago is
        forgotten: a dynamic net (the prediction step of a Kalman filter). Give the next fit ``init=`` this posterior as
        well: it starts where this one ended, parameters without a prior included.

        Parameters
        ----------
        drift : standard deviation of a weight's step from one batch to the next, >= 0.
        draws, seed : of a distribution that is not a product of Normals, as in :meth:`predict`.

        Raises
        ------
        ValueError : drift < 0; weights without a spread (a point estimate has none) and no drift.
        """
        not_negative("drift", drift, "0 is a law that does not change")
        names = list(self.model.log_priors)
        if self.num_chains == 1 and isinstance(self.sources[0], NormalSource):
            source = self.sources[0]
            loc = {name: source.loc[name] for name in names}
            variance = {name: (2 * source.log_sd[name]).exp() for name in names}
        else:
            states = [state for chain in self.states(draws, seed) for state in chain]
            stacked = {name: torch.stack([state[name] for state in states]) for name in names}
            loc = {name: values.mean(0) for name, values in stacked.items()}
            variance = {name: values.var(0, correction=0) for name, values in stacked.items()}
        scale = {name: (value + drift**2).sqrt() for name, value in variance.items()}
        flat = next((name for name, value in scale.items() if not bool((value > 0).all())), None)
        if flat is not None:
            raise ValueError(f"Expected weights with a spread, got none for {flat!r}: pass drift > 0, or more draws.")
        own = [name for name in names if name.startswith("likelihood.")]
        net = [name for name in names if name.startswith("net.")]
        return Independent(
            {name.removeprefix("net."): loc[name] for name in net},
            {name.removeprefix("net."): scale[name] for name in net},
            {name.removeprefix("likelihood."): (loc[name], scale[name]) for name in own},
        )

    def save(self, path: str | Path) -> None:
        """Write a directory of ``manifest.json`` and the safetensors files of the chains; no pickle."""
        from bayesnn.storage import save

        save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, net: nn.Module, prior: Any = None, likelihood: Any = None) -> Posterior:
        """Read what :meth:`save` wrote; ``net`` is a module of the same architecture.

        ``prior`` and ``likelihood`` are needed only where they were a user's own, which no file can hold.
        """
        from bayesnn.storage import load

        return load(Path(path), net, prior, likelihood)

    def to_arviz(
        self, data: tuple[Any, Any] | None = None, weights: bool | Sequence[str] = False, draws: int | None = None
    ) -> Any:
        """An ArviZ data set: posterior, sample_stats, log_likelihood, posterior_predictive, observed_data.

        sample_stats: ``lp`` (log p(w, D)), ``potential_energy`` (its negative) and what :attr:`sample_stats` has.

        And before any data, as many draws as a chain has: prior, prior_predictive; and the inputs: constant_data.

        Parameters
        ----------
        data : (x, y), y in its own units; the training part by default.
        weights : which go into the groups ``posterior`` and ``prior``: names as in ``net.named_parameters()``, or True
            for all of them. There in any case are the likelihood's own parameters and ``log_prior``, log p(w).
        draws : draws a chain, as in :meth:`predict`.
        """
        from bayesnn.inference_data import to_arviz

        return to_arviz(self, data, weights, draws)

    def _device(self) -> torch.device:
        return next(iter(self.model.parameters())).device

    def _counts(self, draws: int | None) -> list[int]:
        if draws is not None:
            at_least("draws", draws, 1)
        wanted = [DEFAULT_DRAWS if s.num_draws is None else s.num_draws for s in self.sources]
        if draws is None:
            return wanted
        return [draws if s.num_draws is None else min(draws, s.num_draws) for s in self.sources]

    def _inputs(self, x: Any) -> Tensor:
        reference = next(iter(self.model.parameters()))
        if isinstance(x, (Data, Loader, DataLoader, Dataset)):
            raise TypeError(
                f"Expected inputs as a tensor or an array, got a {type(x).__name__}: pass its x, (batch, ...)."
            )
        inputs = as_inputs(x)
        inputs = inputs.to(reference.dtype) if inputs.is_floating_point() else inputs
        if inputs.dim() == 0 or len(inputs) == 0:
            raise ValueError(f"Expected at least one input, (batch, ...), got shape {tuple(inputs.shape)}: give rows.")
        if not all_finite(inputs):
            raise ValueError("Expected finite inputs, got NaN or infinity: clean them first.")
        self._try(inputs)
        return inputs

    def _in_units(self, augment: Augment, inputs: Tensor) -> Augment:
        """The transform as ``fit`` would take it, tried on two rows."""
        given = self.info.get("inputs")
        standardize = None if given is None else Standardize.from_dict(given)
        return in_units(augment, standardize, inputs[:2].to(self._device()))

    @torch.no_grad()
    def _try(self, inputs: Tensor) -> None:
        """Raise in one line where the net does not take such inputs: two rows, as one may pass for elements."""
        rows = inputs[:2].to(self._device())
        try:
            with isolated(generator(0)):
                outputs = self.model.net(rows)
            fits = outputs.dim() > 0 and len(outputs) == len(rows)
            if "out_shape" in self.info:  # an axis too many passes through a linear layer
                fits = fits and outputs.dim() == 1 + len(self.info["out_shape"])
            fault = None if fits else f"outputs {tuple(outputs.shape)}"
        except Exception as error:  # a net is the user's own code, and may raise anything
            fault = first_line(error)
        if fault is not None:
            raise ValueError(
                f"Expected inputs of the shape that the net was fitted to, got {tuple(inputs.shape)} and "
                f"{inputs.dtype}: {fault}"
            )


def _iterate(
    source: Source, count: int, seed: int, chain: int, device: torch.device, size: int | None = None
) -> Iterator[State]:
    """The draws of one chain, from the start, or ``size`` of them at a time: the same ones each time."""
    stream = generator(seed, chain, device=device)
    return source.states(count, stream) if size is None else source.blocks(count, stream, size)
