"""The training steps of other libraries, each written as its own documentation has them.

    pip install -c constraints.txt posteriors torchopt bayesian-torch blitz-bayesian-pytorch torchbnn ivon-opt

:func:`installed` gives those whose package is there, for the same net, data and batch as ours: classification by a net
of ``nn.Linear`` and ``nn.Conv2d``, one sample of the weights a step, Adam for variational ones. They are timed, not
judged: what they optimise is theirs. laplace-torch fits after the training, by plain torch: it has no step.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_DATA = 60_000


class Peer(NamedTuple):
    """A library at work: a training step, and the outputs (rows, ...) of a net with one draw of the weights."""

    step: Callable[[], object]
    outputs: Callable[[Tensor], Tensor]


Make = Callable[[nn.Module, Tensor, Tensor], Peer]


def replaced(net: nn.Module, layer: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """The net with each module for which ``layer`` gives another one replaced by it."""
    for name, child in net.named_children():
        other = layer(child)
        if other is None:
            replaced(child, layer)
        else:
            setattr(net, name, other)
    return net


def descent(net: nn.Module, loss: Callable[[], Tensor]) -> Peer:
    """zero_grad, loss, backward, a step of Adam; such a net draws its weights in each pass."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return Peer(step, net)


def bayesian_torch(kind: str) -> Make:
    """Its README: ``dnn_to_bnn``, and the KL over the batch size."""

    def make(net: nn.Module, x: Tensor, y: Tensor) -> Peer:
        from bayesian_torch.models.dnn_to_bnn import dnn_to_bnn, get_kl_loss

        options = {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0, "posterior_rho_init": -3.0}
        dnn_to_bnn(net, {**options, "type": kind, "moped_enable": False, "moped_delta": 0.5})
        return descent(net, lambda: F.cross_entropy(net(x), y) + get_kl_loss(net) / len(x))

    return make


def torchbnn(net: nn.Module, x: Tensor, y: Tensor) -> Peer:
    """Its demo: Bayesian layers, and 0.01 times the mean KL."""
    import torchbnn

    def layer(module: nn.Module) -> nn.Module | None:
        prior: dict[str, float] = {"prior_mu": 0, "prior_sigma": 0.1}
        if isinstance(module, nn.Linear):
            return torchbnn.BayesLinear(**prior, in_features=module.in_features, out_features=module.out_features)
        if isinstance(module, nn.Conv2d):
            options = {"stride": module.stride, "padding": module.padding}
            sizes = module.in_channels, module.out_channels, module.kernel_size
            return torchbnn.BayesConv2d(*prior.values(), *sizes, **options)
        return None

    replaced(net, layer)
    divergence = torchbnn.BKLLoss(reduction="mean", last_layer_only=False)
    return descent(net, lambda: F.cross_entropy(net(x), y) + 0.01 * divergence(net))


def blitz(net: nn.Module, x: Tensor, y: Tensor) -> Peer:
    """Its README: a decorated class, and ``sample_elbo`` with one sample."""
    from blitz.modules import BayesianConv2d, BayesianLinear
    from blitz.utils import variational_estimator

    def layer(module: nn.Module) -> nn.Module | None:
        if isinstance(module, nn.Linear):
            return BayesianLinear(module.in_features, module.out_features)
        if isinstance(module, nn.Conv2d):
            sizes = module.in_channels, module.out_channels, module.kernel_size
            return BayesianConv2d(*sizes, stride=module.stride, padding=module.padding)
        return None

    @variational_estimator
    class Estimator(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x)
            return out

    estimator: Any = Estimator(replaced(net, layer))
    criterion = nn.CrossEntropyLoss()
    options = {"criterion": criterion, "sample_nbr": 1, "complexity_cost_weight": 1 / NUM_DATA}
    return descent(estimator, lambda: estimator.sample_elbo(inputs=x, labels=y, **options))


def ivon(net: nn.Module, x: Tensor, y: Tensor) -> Peer:
    """Its README: sampled parameters around the loss."""
    import ivon

    optimizer = ivon.IVON(net.parameters(), lr=0.1, ess=NUM_DATA)

    def step() -> None:
        with optimizer.sampled_params(train=True):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
        optimizer.step()

    def outputs(x: Tensor) -> Tensor:
        with optimizer.sampled_params():
            out: Tensor = net(x)
            return out

    return Peer(step, outputs)


def posteriors(kind: str) -> Make:
    """Its documentation: a log posterior over N and a temperature of 1 / N. The step and the friction are ours."""

    def make(net: nn.Module, x: Tensor, y: Tensor) -> Peer:
        import posteriors
        import torchopt

        parameters = dict(net.named_parameters())

        def log_posterior(weights: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            outputs = torch.func.functional_call(net, weights, (batch[0],))
            prior = posteriors.diag_normal_log_prob(weights, sd_diag=1.0)
            return -F.cross_entropy(outputs, batch[1]) + prior / NUM_DATA, outputs

        if kind == "VI":
            optimizer = torchopt.adam(lr=1e-3)
            transform = posteriors.vi.diag.build(log_posterior, optimizer, temperature=1 / NUM_DATA, init_log_sds=-3.0)
        else:
            module = getattr(posteriors.sgmcmc, kind.lower())
            # By default its momenta start with variance 1 and not T, and the friction of 0.01 forgets them too late.
            friction = {} if kind == "SGLD" else {"alpha": 1.0, "momenta": 0.0}
            transform = module.build(log_posterior, lr=0.1, temperature=1 / NUM_DATA, **friction)
        state = transform.init(parameters)

        def step() -> None:
            nonlocal state
            state, _ = transform.update(state, (x, y), inplace=True)

        def outputs(x: Tensor) -> Tensor:
            weights = posteriors.vi.diag.sample(state) if kind == "VI" else state.params
            return torch.func.functional_call(net, weights, (x,))

        return Peer(step, outputs)

    return make


# name, the package to import, how to make the step, and which of our rows does the same work
PEERS: tuple[tuple[str, str, Make, str], ...] = (
    ("bayesian-torch, reparameterization", "bayesian_torch", bayesian_torch("Reparameterization"), "MeanFieldVI"),
    ("bayesian-torch, flipout", "bayesian_torch", bayesian_torch("Flipout"), "MeanFieldVI, flipout"),
    ("torchbnn", "torchbnn", torchbnn, "MeanFieldVI"),
    ("BLiTZ", "blitz", blitz, "MeanFieldVI"),
    ("posteriors, VI", "posteriors", posteriors("VI"), "MeanFieldVI"),
    ("ivon-opt", "ivon", ivon, "IVON"),
    ("posteriors, SGLD", "posteriors", posteriors("SGLD"), "SGLD"),
    ("posteriors, SGHMC", "posteriors", posteriors("SGHMC"), "SGHMC"),
    ("posteriors, BAOA", "posteriors", posteriors("BAOA"), "SGHMC"),
    ("posteriors, SGNHT", "posteriors", posteriors("SGNHT"), "SGNHT"),
)


def installed(net: nn.Module, x: Tensor, y: Tensor) -> dict[str, Peer]:
    """Each peer that is installed, on a copy of the net; its steps are on the rows that x and y then hold."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # their own, at import
        for name, package, make, _ in PEERS:
            if importlib.util.find_spec(package) is not None:
                found[name] = make(copy.deepcopy(net), x, y)
    return found
