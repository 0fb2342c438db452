"""The predictive distribution: the equally weighted mixture, over draws of the weights, of the targets' distributions.

    p(y | x, D) = 1/S sum_s p(y | x, w_s)

Quantities are computed in blocks of inputs, so that memory does not grow with inputs times draws; where the outputs for
all inputs fit into BLOCK_BYTES they are kept, and every further quantity is free of forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bayesnn.data.augment import Augment
from bayesnn.data.dataset import as_targets, check_finite
from bayesnn.errors import at_least, first_line
from bayesnn.likelihoods.base import Params, variance_over_draws
from bayesnn.likelihoods.classification import Bernoulli, Categorical
from bayesnn.likelihoods.label_noise import NoisyCategorical
from bayesnn.metrics.classification import mass_before
from bayesnn.metrics.detection import uncertainty_scores
from bayesnn.model import BayesianModel, State
from bayesnn.quantile import invert_cdf
from bayesnn.rng import generator, isolated
from bayesnn.stacked import NotStackableError, params_of_draws

BLOCK_BYTES = 32 * 2**20  # at most, for a block with all that is computed from it; and as much for outputs
PASS_BYTES = 2**20, 64 * 2**20  # inputs of a forward pass, at most, on a CPU, and on a GPU
PASS_ROWS = 1000, 16_384  # likewise, where inputs are small: wide layers make more of them
TTA_ROWS = 256  # inputs transformed at a time
COPIES = 10  # in float64, of a block's parameters: how much the hungriest quantity holds at a time


class Predictive:
    """What the posterior says about the targets of ``x``. Made by :meth:`bayesnn.Posterior.predict`.

    Uncertainties are in nats for classes (total = entropy of the mixture, aleatoric = expected entropy, epistemic =
    mutual information) and variances, in squared units of the target, for real targets and counts (law of total
    variance, 1/S). They add up, total = aleatoric + epistemic, and none is negative.

    Parameters
    ----------
    model : in eval mode, and this object's own: draws are written into it.
    chains : for each chain a function that iterates over its draws anew; with ``size=n`` n at a time, along axis 0.
    counts : draws of each chain.
    x : inputs (batch, ...), on whichever device: they are moved to the model's a block at a time.
    target : affine map of standardised targets, or None; all answers are in the targets' own units.
    batch_size : inputs in one forward pass; by default as many as take PASS_BYTES, at most PASS_ROWS.
    models : for each chain the model that takes its draws, where that is not ``model`` itself; own ones as well.
    tta : (augment, T, seed) of test-time augmentation: over T transforms of each input the class probabilities of each
        draw are averaged.
    """

    def __init__(
        self,
        model: BayesianModel,
        chains: Sequence[Callable[..., Iterator[State]]],
        counts: Sequence[int],
        x: Tensor,
        target: Any = None,
        batch_size: int | None = None,
        models: Sequence[BayesianModel] | None = None,
        tta: tuple[Augment, int, int] | None = None,
    ) -> None:
        self._model, self._chains, self._counts, self._x = model, chains, tuple(counts), x
        self._models, self._device = models or [model] * len(chains), next(model.parameters()).device
        if batch_size is None:
            on_gpu = self._device.type != "cpu"
            batch_size = max(1, min(PASS_ROWS[on_gpu], PASS_BYTES[on_gpu] // max(1, x[0].nbytes)))
        self._target, self._batch_size = target, at_least("batch_size", batch_size, 1)
        self._kept: list[tuple[slice, Params]] = []
        self._summary: dict[str, Tensor] = {}
        self._no_uncertainty: ValueError | None = None
        self._tta = tta
        if tta is not None:
            self._check_tta()

    @property
    def num_draws(self) -> int:
        """S, the draws of all chains together."""
        return sum(self._counts)

    def __len__(self) -> int:
        return len(self._x)

    @property
    def mean(self) -> Tensor:
        """E[y | x, D]: (batch, class) class probabilities, or (batch, ...) the mean in the targets' units."""
        return self._summarise()["mean"]

    @property
    def aleatoric(self) -> Tensor:
        """Expected entropy (nats) or expected noise variance, (batch, ...): what more data would not remove."""
        return self._uncertainty("aleatoric")

    @property
    def epistemic(self) -> Tensor:
        """Mutual information of target and weights (nats), or variance of the conditional mean, (batch, ...)."""
        return self._uncertainty("epistemic")

    @property
    def total(self) -> Tensor:
        """Entropy of the mixture (nats), or its variance, (batch, ...)."""
        return self.aleatoric + self.epistemic

    @property
    def std(self) -> Tensor:
        """Standard deviation of a real target, observation noise included: the root of ``total``."""
        self._refuse_classes("std")
        return self.total.sqrt()

    @property
    def draws(self) -> Tensor:
        """Class probabilities or conditional means of each draw, (chain, draw, batch, ...).

        Chains of different lengths are cut to the shortest, from the front. Grows with draws times inputs.
        """
        flat = torch.cat([self._model.likelihood.mean(params) for _, params in self._blocks()], dim=1)
        shortest = min(self._counts)
        return torch.stack([chain[len(chain) - shortest :] for chain in flat.split(list(self._counts))])

    def log_prob(self, y: Any) -> Tensor:
        """log p(y_i | x_i, D) of the mixture, (batch,), in nats; a density in the targets' own units.

        Of soft labels it is sum_k y_k log p(k | x, D), the expectation over a label drawn from y: minus their
        cross-entropy with ``mean``, whatever the class weights of the fit were.

        Parameters
        ----------
        y : targets (batch, ...): a tensor, array, data frame or list.

        Raises
        ------
        ValueError : ``y`` has another number of rows, shape or dtype than this likelihood takes, NaN or infinities.
        TypeError : ``y`` holds no numbers.
        """
        targets, likelihood = self._targets(y), self._model.likelihood
        return torch.cat([likelihood.mixture_log_prob(params, targets[rows]) for rows, params in self._blocks()])

    def log_likelihood(self, y: Any) -> Tensor:
        """log p(y_i | x_i, w_s) of each draw, (draws of all chains, batch), in nats. Grows with draws times inputs."""
        return torch.cat(list(self._log_likelihoods(y)), dim=1)

    def scores(self) -> dict[str, Tensor]:
        """Scores of classes that grow with doubt, each (batch, ...): :func:`bayesnn.metrics.uncertainty_scores`.

        ``"energy"`` is a score of the size of the net's own outputs. It is left out under ``NoisyCategorical`` and with
        ``augment=``, where only probabilities of the classes are made of them.

        Raises
        ------
        ValueError : the targets are no classes.
        """
        if self._model.likelihood.kind != "classes":
            raise ValueError("Expected classes for .scores(), got a real target: use .epistemic or .std.")
        normalised = self._tta is not None or isinstance(self._model.likelihood, NoisyCategorical)
        parts = []
        for _, params in self._blocks():
            logits = params["logits"]
            if isinstance(self._model.likelihood, Bernoulli):  # of class 1; that of class 0 is zero
                logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)
            found = uncertainty_scores(logits.flatten(1, -2))
            if normalised:  # logits are log probabilities, and the energy is their rounding error
                del found["energy"]
            parts.append({name: score.view(logits.shape[1:-1]) for name, score in found.items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def class_variances(self) -> tuple[Tensor, Tensor]:
        """(aleatoric, epistemic) of each class, each as ``mean`` is: variances of the indicator of the class.

        E[p_k (1 - p_k)] and Var(p_k) over the draws, 1/S, which add up to m_k (1 - m_k) with m the mixture: the
        diagonal of the decomposition of Kwon, Won, Kim & Paik 2020 (Computational Statistics & Data Analysis 142).
        """
        self._class_probs("class_variances()")
        parts = []
        for _, params in self._blocks():
            probs = self._model.likelihood.mean(params).double()
            parts.append(((probs * (1 - probs)).mean(0), variance_over_draws(probs)))
        aleatoric, epistemic = (torch.cat(each) for each in zip(*parts, strict=True))
        return aleatoric, epistemic

    def pit(self, y: Any) -> Tensor:
        """P(target <= y | x, D), (batch, ...): uniform over targets that came true, where the predictions are right.

        The probability integral transform (Dawid 1984; Gneiting, Balabdaoui & Raftery 2007). Of counts, the middle of
        the step that the distribution function takes at y. ``y`` and its errors are those of :meth:`log_prob`.
        """
        self._refuse_classes("pit()")
        targets, likelihood, parts = self._targets(y), self._model.likelihood, []
        for rows, params in self._blocks():
            cdf = likelihood.cdf(params, targets[rows])
            if likelihood.kind == "count":
                cdf = (cdf + likelihood.cdf(params, targets[rows] - 1)) / 2
            parts.append(cdf.mean(0))
        return torch.cat(parts)

    def _log_likelihoods(self, y: Any) -> Iterator[Tensor]:
        """The log likelihood of each draw, block after block of inputs, each (draw, row)."""
        targets = self._targets(y)
        for rows, params in self._blocks():
            yield _sum_events(self._model.likelihood.elementwise_log_prob(params, targets[rows]))

    def quantile(self, q: float | Sequence[float], noise: bool = True) -> Tensor:
        """Quantiles, (len(q), batch, ...), or (batch, ...) for one number.

        Parameters
        ----------
        q : in (0, 1).
        noise : of the target itself (the mixture's), or, if False, of its conditional mean over the draws. For classes
            the quantiles are always those of the class probabilities over the draws.
        """
        levels: list[float] = np.atleast_1d(q).tolist()
        if not all(0 < level < 1 for level in levels):
            raise ValueError(f"Expected quantile levels in (0, 1), got {q!r}.")
        parts = []
        for _, params in self._blocks():
            likelihood = self._model.likelihood
            if noise and likelihood.kind != "classes":
                parts.append(torch.stack([invert_cdf(likelihood, params, level) for level in levels]))
            else:
                means = likelihood.mean(params)
                # numpy, as torch.quantile refuses more than 2^24 numbers; but numpy has no bfloat16.
                numbers = means.float() if means.dtype == torch.bfloat16 else means
                parts.append(torch.as_tensor(np.quantile(numbers.cpu().numpy(), levels, axis=0)).to(means))
        quantiles = torch.cat(parts, dim=1)
        return quantiles[0] if np.ndim(q) == 0 else quantiles

    def interval(self, level: float = 0.9) -> Tensor:
        """Central credible interval of the target itself, (2, batch, ...), in its own units."""
        self._refuse_classes("interval()")
        if not 0 < level < 1:
            raise ValueError(f"Expected level in (0, 1), got {level!r}: 0.9 is the interval from 5 % to 95 %.")
        return self.quantile([(1 - level) / 2, (1 + level) / 2])

    def credible_set(self, level: float = 0.9) -> Tensor:
        """The fewest classes with a probability of at least ``level`` together, (batch, ..., K) bool; 0 and 1 have two.

        Each pixel of an image, and each of several yes-or-no targets, has a set of its own.
        """
        probs = self._all_classes("credible_set()")
        if not 0 < level < 1:
            raise ValueError(f"Expected level in (0, 1), got {level!r}: 0.9 is nine in ten.")
        return mass_before(probs) < level

    def decide(
        self,
        utility: Tensor | Callable[[Tensor], Tensor | Sequence[Tensor]],
        abstain: float | None = None,
        samples: int = 1000,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """The action of greatest expected utility for each input (each pixel), and that utility, each (batch, ...).

        Expected utility of action a is sum_k p(k | x, D) utility[a, k] (Bernardo & Smith 1994, section 2.5), with the
        identity that of the most probable class; of real targets the mean of utility_a(y) over samples of y.

        Parameters
        ----------
        utility : of each action in the case of each class, (actions, K); or a function from samples of the targets,
            (samples, batch, ...) in their own units, to the utility of each action there, (actions, samples, batch) or
            a list of one (samples, batch) to each action.
        abstain : utility of not acting, the action -1, which is taken where no other is worth more.
        samples, seed : of the targets, where ``utility`` is a function.

        Raises
        ------
        ValueError : utilities of another shape; a table of them for real targets.
        """
        if callable(utility):
            each = utility(self.sample(samples, seed))
            values = (each if isinstance(each, Tensor) else torch.stack(list(each))).double()
            if values.dim() != 3 or values.shape[1:] != (samples, len(self)):
                raise ValueError(
                    f"Expected utilities (actions, {samples}, {len(self)}) of the samples' ones, got "
                    f"{tuple(values.shape)}: stack those of the actions along the first axis."
                )
            expected = values.mean(1).T
        else:
            probs = self._all_classes("decide()").double()
            utility = torch.as_tensor(utility).to(probs)
            if utility.dim() != 2 or utility.shape[1] != probs.shape[-1]:
                raise ValueError(
                    f"Expected utilities (actions, {probs.shape[-1]}), a column for each class, got "
                    f"{tuple(utility.shape)}."
                )
            expected = probs @ utility.T
        value, action = expected.max(-1)
        if abstain is not None:
            action = torch.where(value > abstain, action, -1)
            value = value.clamp_min(abstain)
        return action, value

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """``n`` samples of the targets, (n, batch, ...), each of one draw for all inputs: coherent functions."""
        at_least("n", n, 1)
        # A key of its own: (seed, chain) is for samples of the weights, (seed, chain, 0 to 3, round) for fits.
        stream = generator(seed, 0, 3)
        which = torch.randint(self.num_draws, (n,), generator=stream)
        with isolated(stream):
            parts = [
                self._model.likelihood.distribution({key: value[which] for key, value in params.items()}).sample()
                for _, params in self._blocks()
            ]
        return torch.cat(parts, dim=1)

    def _summarise(self) -> dict[str, Tensor]:
        if not self._summary:
            likelihood, parts = self._model.likelihood, []
            for _, params in self._blocks():
                part = {"mean": likelihood.mean(params).mean(0)}
                try:
                    aleatoric, epistemic = likelihood.uncertainty(params)
                except ValueError as error:
                    # A mixture without a variance may have a mean: the error is raised when the variance is asked for.
                    self._no_uncertainty = error
                else:
                    part |= {"aleatoric": aleatoric.to(part["mean"]), "epistemic": epistemic.to(part["mean"])}
                parts.append(part)
            shared = set(parts[0]).intersection(*parts)
            self._summary = {key: torch.cat([part[key] for part in parts]) for key in shared}
        return self._summary

    def _uncertainty(self, part: str) -> Tensor:
        summary = self._summarise()
        if self._no_uncertainty is not None:
            raise self._no_uncertainty
        return summary[part]

    def _targets(self, y: Any) -> Tensor:
        targets = as_targets(y)
        if targets.dim() == 0 or len(targets) != len(self._x):
            got = len(targets) if targets.dim() else f"the single number {targets.item():g}"
            raise ValueError(f"Expected targets for {len(self._x)} inputs, got {got}: give each its target.")
        check_finite("y", targets)
        reference = next(iter(self._model.parameters()))
        # Where targets were standardised, their own units may need float64, and _blocks answers in it.
        dtype = reference.dtype if self._target is None else torch.float64
        targets = targets.to(reference.device, dtype if targets.is_floating_point() else None)
        outputs = self._first_outputs()
        targets = self._model.likelihood.targets_for(targets, outputs.shape[1:])
        return targets.to(dtype) if targets.is_floating_point() else targets

    @torch.no_grad()
    def _first_outputs(self) -> Tensor:
        """The net's outputs for the first input: their form, and whether the net takes such inputs."""
        try:
            outputs: Tensor = self._model.net(self._x[:1].to(self._device))
        except (RuntimeError, IndexError, TypeError) as error:
            raise ValueError(
                f"Expected inputs of the shape that the net was fitted to, got {tuple(self._x.shape)} and "
                f"{self._x.dtype}: {first_line(error)}"
            ) from error
        return outputs

    def _refuse_classes(self, what: str) -> None:
        if self._model.likelihood.kind == "classes":
            raise ValueError(f"Expected a real target for .{what}, got classes: use .total, .aleatoric or .epistemic.")

    def _class_probs(self, what: str) -> Tensor:
        if self._model.likelihood.kind != "classes":
            raise ValueError(f"Expected classes for .{what}, got a real target: use .interval() or .quantile().")
        return self.mean

    def _all_classes(self, what: str) -> Tensor:
        """Probabilities (batch, ..., K) of all classes: of 0 and 1, whose mean is the probability of 1, of both."""
        probs = self._class_probs(what)
        return torch.stack([1 - probs, probs], -1) if isinstance(self._model.likelihood, Bernoulli) else probs

    def _blocks(self) -> Iterator[tuple[slice, Params]]:
        """(rows, parameters of the targets' distribution, each (draw, row, ...)), block after block."""
        if self._kept:
            yield from self._kept
            return
        blocks, kept = [], self._keeps()
        rows, numbers = self._block_rows(), self._numbers()[1]
        # Forward passes of as many rows as outputs fit, twice while they are put together: a tiny net's pass takes as
        # long for ten rows as for a hundred.
        at_once = rows * max(1, BLOCK_BYTES // (2 * rows * numbers))
        if self._x.device != self._device:  # they are there for all draws: no more than PASS_BYTES of them either
            at_once = min(at_once, max(rows, PASS_BYTES[1] // max(1, self._x[0].nbytes)))
        for first in range(0, len(self._x), at_once):
            params = self._params(first, min(first + at_once, len(self._x)))
            if self._target is not None:
                # In float64: of a target like 1e6 +- 1, float32 would leave the mean and nothing of the variance.
                params = {key: value.double() for key, value in params.items()}
                constants = self._target.mean.to(params["loc"]), self._target.std.to(params["loc"])
                params = self._model.likelihood.to_units(params, *constants)
            last = min(first + at_once, len(self._x))
            for start in range(first, last, rows):
                part = slice(start - first, min(start + rows, last) - first)
                block = slice(start, start + rows), {key: value[:, part] for key, value in params.items()}
                if kept:
                    blocks.append(block)
                yield block
        self._kept = blocks

    @torch.no_grad()
    def _numbers(self) -> tuple[int, int]:
        """How many parameters of the targets' distribution one input has over all draws, and their bytes."""
        params = self._model.likelihood.params(self._first_outputs()).values()
        size = 8 if self._target is not None else max(value.element_size() for value in params)
        numbers = max(1, sum(value.numel() for value in params)) * self.num_draws
        return numbers, numbers * size

    def _block_rows(self) -> int:
        """Inputs whose outputs over all draws, with the temporaries of any quantity, fill at most BLOCK_BYTES."""
        return max(1, BLOCK_BYTES // (self._numbers()[0] * COPIES * 8))

    def _keeps(self) -> bool:
        """Whether the outputs for all inputs fit into BLOCK_BYTES."""
        return len(self._x) * self._numbers()[1] <= BLOCK_BYTES

    def _check_tta(self) -> None:
        outputs = self._first_outputs()
        if not isinstance(self._model.likelihood, (Categorical, Bernoulli)) or outputs.dim() > 2:
            kind = type(self._model.likelihood).__name__
            got = f"outputs {tuple(outputs.shape)}" if outputs.dim() > 2 else kind
            raise ValueError(
                f"Expected Categorical or Bernoulli targets, one an input, for augment=, got {got}: a mean over "
                "transforms is of class probabilities; average other predictions yourself."
            )

    def _params(self, first: int, last: int) -> Params:
        """Parameters of the targets' distribution of these inputs, each (draw, row, ...)."""
        if self._tta is None:
            return self._outputs(self._x[first:last])
        _, T, _ = self._tta
        binary, total = isinstance(self._model.likelihood, Bernoulli), None
        for t in range(T):
            logits = self._outputs(self._transformed(t, first, last))["logits"]
            pair = torch.stack([F.logsigmoid(-logits), F.logsigmoid(logits)], -1) if binary else logits
            log_probs = pair.log_softmax(-1)
            total = log_probs if total is None else torch.logaddexp(total, log_probs)
        assert total is not None
        return {"logits": total[..., 1] - total[..., 0] if binary else total - math.log(T)}

    def _transformed(self, t: int, first: int, last: int) -> Tensor:
        """The t-th transform of these inputs: whole stretches of TTA_ROWS, each with a stream of its own, so that it is
        the same whatever the blocks are.
        """
        assert self._tta is not None
        augment, _, seed = self._tta
        pieces = []
        for stretch in range(first // TTA_ROWS, -(-last // TTA_ROWS)):
            start = stretch * TTA_ROWS
            x = self._x[start : start + TTA_ROWS].to(self._device)
            x = augment(x, generator(seed, 0, 6, t, stretch, device=self._device))
            pieces.append(x[max(first - start, 0) : last - start])
        return torch.cat(pieces)

    @torch.no_grad()
    def _outputs(self, x: Tensor) -> Params:
        """Parameters of the targets' distribution, each (draw, row, ...)."""
        pieces = x.to(self._device).split(self._batch_size)
        outputs: Params = {}

        def put(draws: slice, rows: slice, params: Params) -> None:
            for key, value in params.items():
                if key not in outputs:
                    outputs[key] = value.new_empty(self.num_draws, len(x), *value.shape[2:])
                outputs[key][draws, rows] = value

        first_draw = 0
        for model, chain, count in zip(self._models, self._chains, self._counts, strict=True):
            try:
                put(slice(first_draw, first_draw + count), slice(None), params_of_draws(model, chain, pieces))
            except NotStackableError:
                own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
                for draw, state in enumerate(chain(), first_draw):
                    torch._foreach_copy_([own[name] for name in state], list(state.values()))
                    first = 0
                    for piece in pieces:
                        # At once: what a net returns may be a view of a weight, and the next draw is written there.
                        params = {key: value[None] for key, value in model(piece).items()}
                        put(slice(draw, draw + 1), slice(first, first + len(piece)), params)
                        first += len(piece)
            first_draw += count
        return outputs


def _sum_events(log_prob: Tensor) -> Tensor:
    """(draw, batch, ...) -> (draw, batch)."""
    return log_prob if log_prob.dim() == 2 else log_prob.flatten(2).sum(2)
