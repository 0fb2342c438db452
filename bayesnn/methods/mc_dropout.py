"""Monte-Carlo dropout: the dropout that a net was trained with, as a distribution over its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayesnn.methods.base import Plan, Run
from bayesnn.methods.map import MAP, MAPRun
from bayesnn.model import BayesianModel
from bayesnn.nets._parts import frozen_modules
from bayesnn.rng import Streams, generator, isolated
from bayesnn.source import Source
from bayesnn.source_dropout import CHANNELS, DROPOUT, DropoutSource, mask_shape


@dataclass(frozen=True)
class MCDropout(MAP):
    """Train with dropout, predict with dropout: every draw is one set of masks (Gal & Ghahramani 2016).

    Training is that of :class:`bayesnn.MAP`, step for step and bit for bit: the net's dropout modules are active, and a
    step minimises an unbiased estimate of

        F(W) / N = mean_i E_z[-log p(y_i | x_i, W, z)] - log p(W) / N

    with z_j = 0 with probability p and 1 / (1 - p) otherwise, for each unit j that a dropout module sees. The model
    owns N: the likelihood counts N rows and the prior counts once, as everywhere. A draw of the result is one z for all
    inputs, a function; draws differ in z alone.

    F is a negative evidence lower bound. Take q(w): the columns of a layer's weights behind a dropped unit are
    w_j = z_j W_j plus Normal noise whose variance is small and fixed. For p(w_j) = Normal(0, S^2 I) (Gal & Ghahramani
    2016, appendix)

        KL(q || p) = sum_j (1 - p) |W_j / (1 - p)|^2 / (2 S^2) + const = sum_j |W_j|^2 / (2 (1 - p) S^2) + const

    (theirs is (1 - p) |M_j|^2 / (2 S^2) with M = W / (1 - p): torch scales by 1 / (1 - p) while it trains). The model's
    prior Normal(0, s^2) enters F as |W_j|^2 / (2 s^2), so F is the bound for S^2 = s^2 / (1 - p) on weights that a
    dropped unit feeds, and for S = s on all others. As the weight decay of a loss averaged over rows that is
    1 / (N s^2) = 1 / (N (1 - p) S^2). Their lambda = (1 - p) l^2 / (2 N tau), on |M_j|^2 beside half the squared
    error of targets with noise precision tau, is the same with l = 1 / S. The spread of the draws is set by p and the
    net's width, not by N: it does not shrink as data come in unless training shrinks it.

    Parameters
    ----------
    lr, optimizer, momentum, schedule : of the training, see :class:`bayesnn.MAP`.

    Notes
    -----
    Masks belong to ``nn.Dropout`` (one number a feature) and ``nn.Dropout1d/2d/3d`` (one a channel) that are called
    once in a forward pass, with the rows along axis 0. Dropout elsewhere (``F.dropout``, ``nn.AlphaDropout``, inside
    attention or recurrent layers) has no mask to hold, and is refused. Validation scores are those of the net without
    dropout.

    References
    ----------
    Gal & Ghahramani 2016, Dropout as a Bayesian approximation, ICML.
    """

    compiles = False  # the masks are random numbers that the pass draws

    def check(self, model: BayesianModel, plan: Plan) -> None:
        if not plan.random_net:
            raise ValueError("Expected a net with dropout for MCDropout, got one without: add nn.Dropout, or use MAP.")
        for path, module in model.net.named_modules():
            other = isinstance(module, (nn.AlphaDropout, nn.FeatureAlphaDropout)) and module.p > 0
            inside = isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and module.dropout > 0
            if other or inside:
                raise _refusal(f"{type(module).__name__} {path!r}")

    def start(self, model: BayesianModel, plan: Plan, streams: Streams, init: Source | None = None) -> Run:
        return _DropoutRun(self, model, plan, streams, init)


class _DropoutRun(MAPRun):
    _rates: dict[str, Tensor]
    _shapes: dict[str, Tensor]

    def begin_epoch(self, epoch: int, batches: Any) -> None:
        if epoch == 0:
            with isolated(generator(0)):  # the chain's own stream stays that of MAP
                x, _ = next(iter(batches.peek()))
                self._rates, self._shapes = find_masks(self.model, *self.model.place(x))

    def finish(self, batches: Any) -> DropoutSource:
        return DropoutSource(self.model.state(), self._rates, self._shapes)


def find_masks(model: BayesianModel, x: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(rate, mask shape) of each dropout module that a forward pass on rows ``x`` goes through, by its name.

    Raises
    ------
    ValueError : with these masks held fixed the net would still be random, or they would not be those of the training.

    Takes random numbers from torch's global generator: call it inside :func:`bayesnn.rng.isolated`.
    """
    modules: dict[str, Any] = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, DROPOUT) and type(module).forward in {kind.forward for kind in DROPOUT} and module.p > 0
    }
    frozen = frozen_modules(model.net)  # which drop nothing in training, and so at prediction
    modules = {path: module for path, module in modules.items() if module not in frozen}
    few = [x[torch.arange(rows, device=x.device) % len(x)] for rows in (2, 3)]
    calls = _calls(model, modules, few)
    rates, shapes = {}, {}
    for path, module in modules.items():
        seen = calls[path]
        if not seen:
            continue  # no part of the forward pass
        if len(seen) != 4:
            raise _refusal(f"{path!r} called {_times(len(seen))} a forward pass, or not in eval mode")
        channels = isinstance(module, CHANNELS)
        masks = {mask_shape(features, channels) for features in seen}
        if [len(features) for features in seen] != [2, 3, 2, 3] or len(masks) > 1 or not _fits(module, seen[0].dim()):
            raise _refusal(f"{path!r} on features {tuple(seen[0].shape)} of 2 rows")
        rates[path] = torch.tensor(float(module.p), dtype=torch.float64)
        shapes[path] = torch.tensor(masks.pop(), dtype=torch.int64)
    source = DropoutSource(model.state(), rates, shapes)
    outputs = []
    for seed in range(4):
        probe = source.bind(model).train()  # a fresh one each time: what moves in it must not pass for randomness
        with torch.no_grad(), isolated(generator(seed)):
            outputs.append(probe.net(x[:32]))
    if not rates or not all(torch.equal(outputs[0], other) for other in outputs[1:]):
        raise _refusal("a net that is random in train mode without them")
    return rates, shapes


def _calls(model: BayesianModel, modules: dict[str, nn.Module], inputs: list[Tensor]) -> dict[str, list[Tensor]]:
    """What each module is called with on the inputs, first in train mode and then in eval mode."""
    probe = model.copy()
    seen: dict[str, list[Tensor]] = {path: [] for path in modules}
    for path in modules:
        probe.get_submodule(path).register_forward_pre_hook(lambda _, args, path=path: seen[path].append(args[0]))
    with torch.no_grad():
        for training in (True, False):
            probe.train(training)
            for x in inputs:
                probe.net(x)
    return seen


def _fits(module: nn.Module, axes: int) -> bool:
    """Whether torch drops features of so many axes row by row: fewer axes it reads as one row without a batch."""
    if isinstance(module, nn.Dropout1d):
        return axes == 3
    if isinstance(module, nn.Dropout2d):
        return axes in (3, 4)
    return axes == 5 if isinstance(module, nn.Dropout3d) else axes > 1


def _times(calls: int) -> str:
    return f"{calls / 4:g} times"


def _refusal(got: str) -> ValueError:
    return ValueError(
        "Expected dropout in nn.Dropout, Dropout1d, 2d or 3d modules, each called once a forward pass with the rows "
        f"along axis 0, got {got}: give the net such modules, or use MAP."
    )
