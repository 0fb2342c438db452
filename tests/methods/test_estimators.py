"""Local reparameterization and flipout: what they compute to the digit, its law and mean, and what they refuse."""

import itertools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d as imported_conv2d
from torch.nn.functional import linear as imported_linear
from torch.nn.utils.parametrizations import weight_norm

import bayesnn as bnn
from bayesnn.methods import Plan
from bayesnn.methods.calls import Op
from bayesnn.methods.estimators import Estimator, Flipout, Local, _LocalSample
from bayesnn.methods.flat import FlatWeights
from bayesnn.rng import Streams

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from gradient_variance import first_layer_variances

ROWS, PASSES = 4, 150


class Bench:
    """An estimator over the weights of a net, with means and standard deviations of some size."""

    def __init__(self, kind: type[Estimator], net: nn.Module, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)
        self.net = net.to(dtype)
        self.weights = FlatWeights(dict(net.named_parameters()))
        self.mu = torch.randn(len(self.weights.vector), generator=generator, dtype=dtype) * 0.5
        self.sigma = 0.2 + 0.4 * torch.rand(len(self.mu), generator=generator, dtype=dtype)
        self.shift = torch.zeros_like(self.mu)
        names = list(self.weights.parameters)
        self.estimator = kind(self.weights, self.mu, self.sigma, self.shift, names, (), generator)
        self.estimator.refused.clear()

    def take(self, loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs and the gradients of their loss with respect to mu and rho, of one pass."""
        kept: list[Tensor] = []

        def evaluated() -> Tensor:
            kept[:] = [self.net(x)]
            return loss(kept[0])

        while self.estimator.take(evaluated, len(x)) is None:
            pass
        mu_grad, rho_grad = torch.empty_like(self.mu), torch.empty_like(self.mu)
        self.estimator.write(mu_grad, rho_grad, first=True)
        return kept[0].detach(), mu_grad, rho_grad

    def leaves(self) -> tuple[Tensor, Tensor]:
        """Mu and rho as leaves of autograd, for a reference."""
        return self.mu.clone().requires_grad_(), self.sigma.log().requires_grad_()

    def call(self, flat: Tensor, x: Tensor) -> Tensor:
        """The net at other weights."""
        parts = flat.split(self.weights.sizes)
        named = zip(self.weights.parameters.items(), parts, strict=True)
        return functional_call(self.net, {name: part.view(p.shape) for (name, p), part in named}, (x,))


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def grid() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]:
    """(name, module, shape of an input) of every kind of call."""
    yield "linear", lambda: nn.Linear(5, 3), (ROWS, 5)
    yield "linear without bias", lambda: nn.Linear(5, 3, bias=False), (ROWS, 5)
    yield "linear on tokens", lambda: nn.Linear(5, 3), (ROWS, 3, 5)
    for axes, make in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
        shape = (ROWS, 4, 7, 6, 5)[: axes + 2]
        paddings = (0, 1, tuple(range(axes)), "same", "valid")
        for stride, padding, dilation, groups in itertools.product((1, 2), paddings, (1, 2), (1, 2)):
            if padding == "same" and stride != 1:
                continue
            # An even kernel along the last axis: "same" pads it more at the end.
            options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
            kernel = (3, 3, 2)[3 - axes :]
            yield f"conv{axes}d {options}", lambda m=make, k=kernel, o=options: m(4, 2, k, **o), shape
        for mode in ("reflect", "replicate", "circular"):
            options = {"padding": 1, "padding_mode": mode, "stride": (2, 1, 1)[:axes], "bias": False}
            yield f"conv{axes}d {options}", lambda m=make, o=options: m(4, 2, 2, **o), shape
        yield f"conv{axes}d same reflect", lambda m=make: m(4, 2, 2, padding="same", padding_mode="reflect"), shape


GRID = {name: (make, shape) for name, make, shape in grid()}


@pytest.mark.parametrize("name", GRID)
def test_local_to_the_digit(name: str) -> None:
    """Outputs and all gradients against autograd through mean + sqrt(variance) * xi with the same xi."""
    make, shape = GRID[name]
    bench, x = Bench(Local, make()), inputs(*shape).requires_grad_()
    state = bench.estimator._generator.get_state()
    out, mu_grad, rho_grad = bench.take(lambda out: (out**3).sum(), x)
    x_grad, x.grad = x.grad, None
    bench.estimator._generator.set_state(state)
    xi = torch.empty_like(out).normal_(0, 0.5, generator=bench.estimator._generator) * 2
    mu, rho = bench.leaves()
    reference = bench.call(mu, x) + bench.call((2 * rho).exp(), x**2).sqrt() * xi
    (reference**3).sum().backward()
    for ours, theirs in ((out, reference), (x_grad, x.grad), (mu_grad, mu.grad), (rho_grad, rho.grad)):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", GRID)
def test_flipout_to_the_digit(name: str) -> None:
    """Outputs and all gradients against each row in a call of its own, with its own weights written out.

    Row n has mu + shift * r_n s_n' for the weight, and mu_b + shift_b * r_n for the bias.
    """
    make, shape = GRID[name]
    bench, x = Bench(Flipout, make()), inputs(*shape).requires_grad_()
    out, mu_grad, rho_grad = bench.take(lambda out: (out**3).sum(), x)
    x_grad, x.grad = x.grad, None
    s, r = bench.estimator._called["weight"]
    assert set(s.unique().tolist()) == set(r.unique().tolist()) == {-1.0, 1.0}
    weight = bench.weights.parameters["weight"]
    groups = getattr(bench.net, "groups", 1)
    eps = bench.shift / bench.sigma
    mu, rho = bench.leaves()
    rows = []
    for n in range(ROWS):
        group = torch.arange(len(weight)) // (len(weight) // groups)  # of each output channel
        inside = s[n].view(groups, -1)[group]  # (outputs, inputs of its group)
        signs = (r[n][:, None] * inside).view(*inside.shape, *[1] * (weight.dim() - 2)).expand_as(weight)
        flat = [signs.reshape(-1), r[n]] if len(bench.weights.sizes) == 2 else [signs.reshape(-1)]
        rows.append(bench.call(mu + rho.exp() * eps * torch.cat(flat), x[n : n + 1]))
    reference = torch.cat(rows)
    (reference**3).sum().backward()
    for ours, theirs in ((out, reference), (x_grad, x.grad), (mu_grad, mu.grad), (rho_grad, rho.grad)):
        torch.testing.assert_close(ours, theirs)


def z_scores(draws: Tensor, expected: Tensor | float) -> Tensor:
    """Deviation of the mean over axis 0 from what is expected, in standard errors."""
    error = draws.std(0) / math.sqrt(len(draws))
    return ((draws.mean(0) - expected) / error).flatten()


def assert_standard(z: Tensor) -> None:
    """No coordinate is off by more than 5 standard errors; those whose draws do not vary have to be exact."""
    z = z[~z.isnan()]
    assert z.abs().max() < 5, f"off by {z.abs().max():.1f} standard errors"


LAWS = [name for name in GRID if name.startswith("linear")] + [
    "conv1d {'stride': 2, 'padding': 1, 'dilation': 2, 'groups': 2}",
    "conv2d {'stride': 1, 'padding': 'same', 'dilation': 1, 'groups': 2}",
    "conv2d {'padding': 1, 'padding_mode': 'circular', 'stride': (2, 1), 'bias': False}",
    "conv3d {'stride': 2, 'padding': (0, 1, 2), 'dilation': 1, 'groups': 1}",
]


@pytest.mark.parametrize("kind", [Local, Flipout])
@pytest.mark.parametrize("name", LAWS)
def test_law_of_the_pre_activations_and_mean_of_the_gradients(kind: type[Estimator], name: str) -> None:
    """Against the closed form under q: for each output, mean m = op(x, mu) and variance v = op(x^2, sigma^2); for the
    loss sum c out^2 + d out, E = sum c (m^2 + v) + d m and its gradients.
    """
    make, shape = GRID[name]
    bench, x = Bench(kind, make()), inputs(*shape)
    mu, rho = bench.leaves()
    m, v = bench.call(mu, x), bench.call((2 * rho).exp(), x**2)
    generator = torch.Generator().manual_seed(1)
    c, d = (torch.rand(m.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    (c * (m**2 + v) + d * m).sum().backward()
    passes = [bench.take(lambda out: (c * out**2 + d * out).sum(), x) for _ in range(400)]
    out, mu_grad, rho_grad = (torch.stack(each) for each in zip(*passes, strict=True))
    assert_standard(z_scores(out, m.detach()))
    assert_standard(z_scores((out - m.detach()) ** 2 / v.detach(), 1.0))
    assert_standard(z_scores(mu_grad, mu.grad))
    assert_standard(z_scores(rho_grad, rho.grad))
    # With the power to see a scale that is off by a half.
    assert z_scores(rho_grad.sum(1), 1.5 * rho.grad.sum()).abs() > 5


def test_positions_share_a_sample_in_flipout_and_not_in_local() -> None:
    """The variance of a row's sum over the positions is that of sum_w (d sum / d w) w. Local reparameterization takes
    the positions for independent and gives sum v instead, as its docstring says.
    """
    x = inputs(ROWS, 2, 5, 5)
    variances = {}
    for kind in (Local, Flipout):
        bench = Bench(kind, nn.Conv2d(2, 1, 3, padding=1))
        mu, _ = bench.leaves()
        sums = bench.call(mu, x).flatten(1).sum(1)
        slopes = torch.stack([torch.autograd.grad(row, mu, retain_graph=True)[0] for row in sums])
        exact = (slopes**2 * bench.sigma**2).sum(1)  # (row,)
        independent = bench.call(bench.sigma**2, x**2).flatten(1).sum(1).detach()
        sums = torch.stack([bench.take(torch.sum, x)[0].flatten(1).sum(1) for _ in range(500)])
        variances[kind] = (sums - bench.call(bench.mu, x).flatten(1).sum(1)) ** 2
    assert_standard(z_scores(variances[Flipout], exact))
    assert_standard(z_scores(variances[Local], independent))
    assert (z_scores(variances[Flipout], independent).abs() > 5).any()


def test_rows_of_flipout_and_local_are_uncorrelated() -> None:
    x = inputs(1, 5).expand(ROWS, 5)
    for kind in (Local, Flipout):
        bench = Bench(kind, nn.Linear(5, 1))
        out = torch.stack([bench.take(torch.sum, x)[0].flatten() for _ in range(1000)])
        noise = out - bench.call(bench.mu, x[:1]).flatten()
        assert_standard(z_scores(noise[:, 0] * noise[:, 1], 0.0))
        assert_standard(z_scores(noise[:, 2] * noise[:, 3], 0.0))


class Product(nn.Module):
    """Scalars: a weight applied twice, or a bias beside two weights."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.shared = shared
        self.a, self.b = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.ones(1))
        self.c = nn.Parameter(torch.ones(1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.shared == "weight":
            return F.linear(F.linear(x, self.a), self.a, self.b) + F.linear(x, self.c)
        return F.linear(x, self.a, self.b) * F.linear(x, self.c, self.b)


@pytest.mark.parametrize("kind", [Local, Flipout])
@pytest.mark.parametrize("shared", ["weight", "bias"])
def test_what_two_calls_share_is_one_sample(kind: type[Estimator], shared: str) -> None:
    """E[a a x] = (mu^2 + sigma^2) x, and E[(a x + b) (c x + b)] has sigma_b^2 more than the product of the means."""
    bench, x = Bench(kind, Product(shared)), inputs(ROWS, 1)
    bench.sigma.copy_(torch.tensor([1.0, 0.2, 0.2] if shared == "weight" else [0.2, 1.0, 0.2]))
    out = torch.stack([bench.take(torch.sum, x)[0] for _ in range(400)])
    at_mean = bench.call(bench.mu, x)
    variance = bench.sigma.square()
    assert_standard(z_scores(out, at_mean + (variance[0] * x if shared == "weight" else variance[1])))
    assert z_scores(out, at_mean).abs().max() > 5
    refused = {"weight": {"a", "b"} if kind is Local else set(), "bias": {"b"}}[shared]
    assert set(bench.estimator.refused) == refused


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_local_has_no_gradient_where_there_is_no_variance(dtype: torch.dtype) -> None:
    """A row of zeros under a layer without bias: sqrt has no derivative at 0, and all that feeds it is 0."""
    bench = Bench(Local, nn.Linear(3, 2, bias=False), dtype)
    x = inputs(2, 3).to(dtype)
    x[0] = 0
    x.requires_grad_()
    _, mu_grad, rho_grad = bench.take(lambda out: (out + 1).square().sum(), x)
    for grad in (mu_grad, rho_grad, x.grad):
        assert torch.isfinite(grad).all()
    out, mu_grad, rho_grad = bench.take(lambda out: (out[0] + 1).square().sum(), x)
    assert (out[0] == 0).all()
    assert (out[1] != 0).all()
    assert (mu_grad == 0).all()
    assert (rho_grad == 0).all()


# Nets for what an estimator serves and what it refuses. Inputs are (batch, 6); every net ends in two outputs.


class Imports(nn.Module):
    """Every way to call the functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.module = nn.Conv2d(1, 2, 2), nn.Linear(4, 4)
        self.a, self.b, self.c = (nn.Parameter(0.3 * torch.ones(*shape)) for shape in ((4, 4), (4, 4), (2, 4)))
        self.offset = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        h = imported_conv2d(x.view(-1, 1, 2, 3), bias=self.conv.bias, weight=self.conv.weight)
        h = self.module(h.flatten(1)).tanh()
        h = imported_linear(h, self.a)
        h = torch.nn.functional.linear(weight=self.b, input=h)
        out: Tensor = F.linear(h, self.c, self.offset)
        return out


class Tied(nn.Module):
    """One weight in two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.inner(self.inner(x).tanh()).tanh())
        return out


class Both(nn.Module):
    """A weight in a linear call and in another use, and one that only ``other`` sees."""

    def __init__(self, other: Callable[[Tensor, nn.Parameter], Tensor]) -> None:
        super().__init__()
        self.inner, self.head, self.other = nn.Linear(6, 6), nn.Linear(6, 2), other

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.other(self.inner(x).tanh(), self.inner.weight))
        return out


@torch.jit.script
def scripted(h: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(h, weight)


@torch.no_grad()
def stacked(h: Tensor, weight: Tensor) -> Tensor:
    return torch.stack([torch.eye(6, dtype=h.dtype), weight]).sum(0)


class Tokens(nn.Module):
    """Two tokens of three numbers in each row, as rows of their own, as an axis, as the first axis, or mapped over."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        self.inner, self.head, self.layout = nn.Linear(3, 3), nn.Linear(6, 2), layout

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(-1, 2, 3)
        if self.layout == "mapped":
            h = torch.func.vmap(self.inner, in_dims=1, out_dims=1, randomness="different")(tokens)
        elif self.layout == "rows":
            h = self.inner(tokens.flatten(0, 1)).view_as(tokens)
        elif self.layout == "first":
            h = self.inner(tokens.transpose(0, 1)).transpose(0, 1)
        else:
            h = self.inner(tokens)
        out: Tensor = self.head(h.flatten(1).tanh())
        return out


class Squares(nn.Module):
    """As many tokens as rows, the rows second: only the values can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.expand(len(x), *x.shape).tanh()
        out: Tensor = self.head(self.inner(rows).mean(0))
        return out


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.attention, self.head = (
            nn.Linear(2, 4),
            nn.MultiheadAttention(4, 2, batch_first=True),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x.view(-1, 3, 2))
        out: Tensor = self.head(self.attention(h, h, h, need_weights=False)[0].mean(1))
        return out


def sequence(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*layers)


class Slope(nn.Module):
    """The net's own derivative is an output: its gradient is a second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            value = self.head(self.inner(x).tanh())
            (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        return torch.cat([value, slope[:, :1]], 1)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.head, self.reentrant = nn.Linear(6, 4), nn.Linear(4, 2), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()  # without it a reentrant checkpoint has no gradients at all
        h: Tensor = torch.utils.checkpoint.checkpoint(self.inner, x, use_reentrant=self.reentrant)
        out: Tensor = self.head(h.tanh())
        return out


class PerRow(nn.Module):
    """A map over the rows: inside it there is no axis of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.func.vmap(lambda row: self.inner(row[None])[0].tanh())(x))
        return out


INNER, HEAD = {"inner.weight", "inner.bias"}, {"head.weight", "head.bias"}
ATTENTION = {f"attention.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")}
# Net -> (how to make it, what local refuses, what flipout refuses).
NETS: dict[str, tuple[Callable[[], nn.Module], set[str], set[str]]] = {
    "imports": (Imports, set(), set()),
    "tied": (Tied, INNER, set()),
    "matmul too": (lambda: Both(lambda h, w: h @ w), INNER, INNER),
    "in a list, without gradient": (lambda: Both(lambda h, w: h @ stacked(h, w)), INNER, INNER),
    "scripted": (lambda: Both(lambda h, w: scripted(h, w)), INNER, INNER),
    "without gradient": (lambda: Both(lambda h, w: h @ w.detach()), INNER, INNER),
    "shape only": (lambda: Both(lambda h, w: h / w.shape[0] + w.dim() + w.size(0)), set(), set()),
    "token axis": (lambda: Tokens("axis"), set(), set()),
    "token rows": (lambda: Tokens("rows"), set(), INNER),
    "token first": (lambda: Tokens("first"), set(), INNER),
    "token mapped": (lambda: Tokens("mapped"), INNER, INNER),
    "square": (Squares, set(), INNER),
    "attention": (Attention, ATTENTION, ATTENTION),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
        {"1.weight", "1.bias"},
        {"1.weight", "1.bias"},
    ),
    "transposed": (
        lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.ConvTranspose1d(2, 2, 2), nn.Flatten(), nn.Linear(8, 2)),
        {"1.weight", "1.bias"},
        {"1.weight", "1.bias"},
    ),
    "parametrised": (
        lambda: nn.Sequential(weight_norm(nn.Linear(6, 4)), nn.Linear(4, 2)),
        {"0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"},
        {"0.bias", "0.parametrizations.weight.original0", "0.parametrizations.weight.original1"},
    ),
    "batch statistics": (
        lambda: nn.Sequential(
            nn.Linear(6, 4), nn.BatchNorm1d(4, affine=False, track_running_stats=False), nn.Linear(4, 2)
        ),
        {"0.weight", "0.bias", "2.weight", "2.bias"},
        {"0.weight", "0.bias", "2.weight", "2.bias"},
    ),
    "unbatched": (PerRow, INNER, INNER),
    "slope": (Slope, INNER | HEAD, set()),
    "checkpoint": (lambda: Checkpointed(False), INNER | HEAD, INNER | HEAD),
    "reentrant checkpoint": (lambda: Checkpointed(True), INNER, INNER),
}
X = inputs(12, 6)
Y = inputs(12, 2).flip(0)


def model_of(net: nn.Module, prior: object = None) -> bnn.BayesianModel:
    return bnn.BayesianModel(net, prior or bnn.priors.Normal(1.0), bnn.likelihoods.Normal(scale=0.5)).double()


def run_gradients(model: bnn.BayesianModel, passes: int, **options: object) -> tuple[Tensor, set[str]]:
    """Gradients (pass, mu and rho) of fresh passes at the same place, and the names in the warning."""
    method = bnn.MeanFieldVI(initial_sd=0.3, **options)
    plan = Plan(num_data=len(X), batch_size=len(X), epochs=passes, steps_per_epoch=1, chains=1)
    run = method.start(model.copy(), plan, Streams(0, 0))
    group = run.optimizers[0].param_groups[0]
    group["lr"] = 0.0
    draws, refused = [], set()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(passes):
            run.step(X, Y)
            draws.append(torch.cat([parameter.grad.flatten() for parameter in group["params"]]))
    for warning in caught:
        if "plain reparameterization" in str(warning.message):
            refused |= set(str(warning.message).rstrip(".").split(": ")[1].replace("net.", "").split(", "))
    return torch.stack(draws), refused


@cache
def initialised(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return NETS[name][0]()


@cache
def plain_gradients(name: str) -> Tensor:
    return run_gradients(model_of(initialised(name)), PASSES)[0]


def assert_same_mean(first: Tensor, second: Tensor) -> None:
    error = (first.var(0) / len(first) + second.var(0) / len(second)).sqrt()
    assert_standard((first.mean(0) - second.mean(0)) / error)


@pytest.mark.parametrize("estimator", ["local", "flipout"])
@pytest.mark.parametrize("name", NETS)
def test_what_is_refused_and_that_gradients_have_the_mean_of_plain_ones(name: str, estimator: str) -> None:
    model = model_of(initialised(name))
    expected = NETS[name][1 if estimator == "local" else 2]
    draws, refused = run_gradients(model, PASSES, estimator=estimator)
    assert refused == expected
    if estimator == "local" and name in {"token axis", "token rows", "token first", "square", "imports"}:
        return  # positions of one call: independent by assumption
    assert_same_mean(draws, plain_gradients(name))


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_a_fallback_that_is_missed_would_be_seen(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the watch over other uses and the gradients that they leave, the means of the gradients are wrong."""
    monkeypatch.setattr(Estimator, "_watch", lambda self, values: None)
    monkeypatch.setattr(nn.Parameter, "grad", None, raising=False)
    draws, refused = run_gradients(model_of(initialised("matmul too")), PASSES, estimator=estimator)
    monkeypatch.undo()
    assert not refused
    with pytest.raises(AssertionError, match="off by"):
        assert_same_mean(draws, plain_gradients("matmul too"))


@pytest.mark.parametrize("estimator", ["local", "flipout"])
@pytest.mark.parametrize("samples", [1, 3])
def test_priors_without_a_closed_kl_and_several_samples(estimator: str, samples: int) -> None:
    """The prior's density takes a sample of weights that are served in the likelihood."""
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2))
    prior = bnn.priors.ByName({"*bias": bnn.priors.Normal(0.7, loc=0.3)}, default=bnn.priors.StudentT(df=5, scale=0.2))
    model = model_of(net, prior)
    draws, refused = run_gradients(model, PASSES, estimator=estimator, mc_samples=samples)
    assert not refused
    assert_same_mean(draws, run_gradients(model, PASSES, mc_samples=samples)[0])


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_parameters_without_a_prior_beside_those_with_one(estimator: str) -> None:
    """Deterministic biases of served weights, and a deterministic layer in between, have their gradients."""
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    net[4].bias.requires_grad_(False)
    prior = bnn.priors.ByName({"0.bias": None, "2.*": None}, default=bnn.priors.Normal(1.0))
    draws, refused = run_gradients(model_of(net, prior), PASSES, estimator=estimator)
    assert not refused
    assert_same_mean(draws, run_gradients(model_of(net, prior), PASSES)[0])


@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_a_parameter_that_a_later_step_uses_otherwise_is_refused_then(estimator: str) -> None:
    calls = itertools.count()
    net = Both(lambda h, w: h @ w if next(calls) >= 8 else h)
    fit = lambda: bnn.fit(  # noqa: E731
        model_of(net), (X, Y), bnn.MeanFieldVI(estimator=estimator), epochs=20, batch_size=12, progress=False
    )
    with pytest.warns(UserWarning, match=r"cannot serve 2 of 4 .*: net.inner.weight, net.inner.bias\.$") as caught:
        posterior = fit()
    assert next(calls) > 28
    assert math.isfinite(posterior.history[-1]["loss"])
    assert [warning.filename for warning in caught if "cannot serve" in str(warning.message)] == [__file__]


def test_nothing_is_said_where_everything_is_served() -> None:
    net = bnn.nets.LeNet5((1, 8, 8), 3)
    x, y = torch.randn(20, 1, 8, 8), torch.arange(20) % 3
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Categorical())
    for estimator in ("local", "flipout"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bnn.fit(model, (x, y), bnn.MeanFieldVI(estimator=estimator), epochs=2, batch_size=8, progress=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_same_seed_same_bits_and_same_file(estimator: str, dtype: torch.dtype, tmp_path) -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2))
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Normal()).to(dtype)
    posteriors = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        with pytest.warns(UserWarning, match="plain reparameterization: net.1.bias"):
            posterior = bnn.fit(
                model, (X, Y), bnn.MeanFieldVI(estimator=estimator), epochs=5, batch_size=5, progress=False
            )
        assert torch.equal(torch.get_rng_state(), before)
        posteriors.append(posterior)
    first, second = (posterior.sources[0].tensors() for posterior in posteriors)
    assert all(value.dtype == dtype and torch.equal(value, second[name]) for name, value in first.items())
    posteriors[0].save(tmp_path / "saved")
    again = bnn.Posterior.load(tmp_path / "saved", net)
    assert all(torch.equal(value, first[name]) for name, value in again.sources[0].tensors().items())
    assert again.info["method"]["estimator"] == estimator


def test_gradients_have_less_variance_at_a_trained_posterior() -> None:
    """The short form of benchmarks/gradient_variance.py: the first layer's means, a fixed batch of digits.

    What the rows share does not average out in a batch: the gain grows with it.
    """
    train, _ = bnn.data.load("digits")
    x = train.x.flatten(1)
    model = bnn.BayesianModel(bnn.nets.MLP(64, (32,), 10), likelihood=bnn.likelihoods.Categorical())
    posterior = bnn.fit(model, (x, train.y), bnn.MeanFieldVI(lr=0.01), epochs=20, progress=False)
    variances = first_layer_variances(model, posterior, x[:512], train.y[:512], passes=100)
    plain, error = variances["reparam"]
    for estimator in ("local", "flipout"):
        variance, own_error = variances[estimator]
        # Lower by 3 with 4 standard errors to spare.
        assert plain - 3 * variance > 4 * math.hypot(error, 3 * own_error), variances


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_on_cuda(estimator: str) -> None:
    net = bnn.nets.LeNet5((1, 8, 8), 3)
    x, y = torch.randn(20, 1, 8, 8), torch.arange(20) % 3
    x[0] = 0
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Categorical())
    method = bnn.MeanFieldVI(estimator=estimator)
    posterior = bnn.fit(model, (x, y), method, epochs=3, batch_size=8, device="cuda", progress=False)
    assert all(torch.isfinite(value).all() for value in posterior.sources[0].tensors().values())


@pytest.mark.parametrize("below", [0.0, 1e-9])
def test_a_variance_of_minus_zero_or_a_little_below_is_none(below):
    """As kernels leave them that add and subtract: no noise there, and gradients of the mean alone."""

    def linear(x, weight, bias):
        return -F.linear(-x, weight) + (-below if bias is None else bias)

    x, mu = torch.zeros(3, 4, requires_grad=True), torch.ones(2, 4, requires_grad=True)
    var, bias = torch.ones(2, 4, requires_grad=True), torch.ones(2)
    out = _LocalSample.apply(Op(linear), x, mu, var, bias, None, torch.Generator().manual_seed(0))
    torch.testing.assert_close(out, torch.ones(3, 2))
    found = torch.autograd.grad(out.sum(), (x, mu, var))
    for gradient, expected in zip(found, (torch.full((3, 4), 2.0), torch.zeros(2, 4), torch.zeros(2, 4)), strict=True):
        torch.testing.assert_close(gradient, expected)
