"""MC dropout: its masks, its draws by hand, and its optimum in a linear model in closed form."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bayesnn as bnn
from bayesnn import likelihoods, priors
from tests.posteriors.contract import X, Y, assert_contract, assert_works_on_cuda, fit
from tests.posteriors.linear import D, problem

P = 0.3


def net_with_dropout(p=P):
    return bnn.nets.MLP(2, (16,), 1, dropout=p)


# The masks


def test_masks_keep_at_the_right_rate_and_are_scaled():
    posterior, n = fit(bnn.MCDropout(), net_with_dropout()), 500
    masks = torch.stack([state["net.layers.2.mask"] for state in posterior.states(n)[0]])
    assert masks.shape == (n, 16)  # one number a feature, one mask for all inputs
    kept = masks > 0
    assert set(masks.unique().tolist()) == {0.0, float(torch.tensor(1.0) / (1 - P))}
    share, error = float(kept.double().mean()), (P * (1 - P) / kept.numel()) ** 0.5
    assert abs(share - (1 - P)) < 4 * error
    assert abs(float(kept.double().mean(1).var()) / (P * (1 - P) / 16) - 1) < 4 * (2 / n) ** 0.5  # independent units


def test_a_draw_is_one_function_of_all_inputs():
    posterior = fit(bnn.MCDropout(), net_with_dropout())
    whole, one_by_one = posterior.predict(X), posterior.predict(X, batch_size=1)
    torch.testing.assert_close(whole.draws, one_by_one.draws)
    same = posterior.predict(X[:1].expand(5, 2)).draws[0]
    torch.testing.assert_close(same, same[:, :1].expand_as(same), rtol=1e-6, atol=1e-6)


def test_draws_are_forward_passes_with_the_same_masks():
    posterior = fit(bnn.MCDropout(), net_with_dropout(), dtype=torch.float64)
    x, draws = X.double(), posterior.predict(X, draws=6).draws[0]
    for state, draw in zip(posterior.states(6)[0], draws, strict=True):
        hidden = F.linear(x, state["net.layers.0.weight"], state["net.layers.0.bias"]).relu()
        hidden = hidden * state["net.layers.2.mask"]
        by_hand = F.linear(hidden, state["net.layers.3.weight"], state["net.layers.3.bias"])
        np.testing.assert_allclose(draw, by_hand[:, 0], rtol=1e-12)


def test_the_mean_over_masks_of_a_linear_net_is_the_net_without_dropout():
    posterior, n = fit(bnn.MCDropout(), nn.Sequential(nn.Dropout(P), nn.Linear(2, 1)), dtype=torch.float64), 4000
    draws, plain = posterior.predict(X, draws=n).draws[0], posterior.net()(X.double())[:, 0]
    assert ((draws.mean(0) - plain).abs() < 4 * draws.std(0) / n**0.5).all()
    weights = posterior.sources[0].last()["net.1.weight"][0]
    variance = ((X.double() * weights) ** 2).sum(1) * P / (1 - P)
    kurtosis = ((draws - draws.mean(0)) ** 4).mean(0) / draws.var(0) ** 2
    assert ((draws.var(0) / variance - 1).abs() < 4 * ((kurtosis - 1) / n).sqrt()).all()


def test_masks_of_channels_are_one_number_a_channel():
    images = torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.Dropout2d(P), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(96, 1)
    )
    model = bnn.BayesianModel(net, likelihood=likelihoods.Normal())
    posterior = bnn.fit(model, (images, Y), bnn.MCDropout(), epochs=2, progress=False)
    state = posterior.states(1)[0][0]
    assert state["net.1.mask"].shape == (6, 1, 1)
    assert state["net.3.mask"].shape == (6, 4, 4)
    hidden = (F.conv2d(images, state["net.0.weight"], state["net.0.bias"], padding=1) * state["net.1.mask"]).relu()
    by_hand = F.linear((hidden * state["net.3.mask"]).flatten(1), state["net.5.weight"], state["net.5.bias"])
    torch.testing.assert_close(posterior.predict(images, draws=1).draws[0, 0], by_hand[:, 0])


def test_masks_do_not_stretch_to_other_inputs():
    images = torch.randn(24, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Dropout(P), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 1))
    model = bnn.BayesianModel(net, likelihood=likelihoods.Normal())
    posterior = bnn.fit(model, (images, Y), bnn.MCDropout(), epochs=1, progress=False)
    with pytest.raises(
        ValueError, match=r"Expected features of the shape .* \(6, 2, 2\), got \(6, 3, 3\): give inputs"
    ):
        posterior.predict(torch.zeros(1, 1, 5, 5)).mean  # noqa: B018


@pytest.mark.parametrize(("kind", "size"), [(nn.Dropout1d, (5,)), (nn.Dropout2d, (5, 5)), (nn.Dropout3d, (5, 5, 5))])
def test_the_masked_net_is_torchs_own_dropout_with_that_mask(kind, size):
    """Whichever axes torch draws on, its output is one of those that our masks can give."""
    conv = {nn.Dropout1d: nn.Conv1d, nn.Dropout2d: nn.Conv2d, nn.Dropout3d: nn.Conv3d}[kind]
    net = nn.Sequential(conv(1, 3, 1), kind(0.5), nn.Flatten(), nn.Linear(3 * 5 ** len(size), 1))
    x = torch.randn(8, 1, *size, generator=torch.Generator().manual_seed(0))
    model = bnn.BayesianModel(net, likelihood=likelihoods.Normal())
    posterior = bnn.fit(model, (x, Y[:8]), bnn.MCDropout(), epochs=1, progress=False)
    fitted = posterior.net()
    ours = {tuple(s["net.1.mask"].flatten().tolist()): k for k, s in enumerate(posterior.states(80)[0])}
    assert len(ours) == 8  # all masks of three channels at a rate of a half
    plain = posterior.model.copy()
    plain.load_state(posterior.sources[0].last())
    torch.manual_seed(0)
    theirs = plain.net.train()(x[:1]).detach()
    candidates = [posterior.net(0, k)(x[:1]).detach() for k in ours.values()]
    assert min(float((theirs - one).abs().max()) for one in candidates) < 1e-6
    assert not any(isinstance(module, kind) for module in fitted.modules())


# The training


def test_training_is_that_of_map_to_the_bit():
    net = net_with_dropout()
    point, draws = fit(bnn.MAP(), net, chains=2), fit(bnn.MCDropout(), net, chains=2)
    for one, other in zip(point.sources, draws.sources, strict=True):
        assert all(torch.equal(value, other.last()[name]) for name, value in one.last().items())


CHAINS = 5


@cache
def linear_fit():
    """(the problem, fitted weights (chain, K, D)) of Dropout(P) and a linear layer, full batches."""
    case = problem(n=40, s=0.5)
    net = nn.Sequential(nn.Dropout(P), nn.Linear(D, case.y.shape[1], bias=False))
    model = bnn.BayesianModel(net, priors.Normal(0.5), likelihoods.Normal(case.sigma)).double()
    method = bnn.MCDropout(lr=0.02)
    posterior = bnn.fit(model, (case.x, case.y), method, epochs=800, batch_size=None, chains=CHAINS, progress=False)
    return case, np.stack([source.last()["net.1.weight"].numpy() for source in posterior.sources])


def optimum(case, p, s):
    """argmin of E_z |y - X diag(z) w|^2 / (2 sigma^2) + |w|^2 / (2 s^2), the columns' rows (K, D).

    E_z[(y - x' diag(z) w)^2] = (y - x'w)^2 + p / (1 - p) sum_j x_j^2 w_j^2: dropout is an L2 penalty whose weights are
    the data's (Wager, Wang & Liang 2013), w = (X'X + p / (1 - p) diag(X'X) + sigma^2 / s^2 I)^-1 X'y.
    """
    x, y = case.x.numpy(), case.y.numpy()
    gram = x.T @ x
    penalty = p / (1 - p) * np.diag(np.diag(gram)) + case.sigma**2 / s**2 * np.eye(D)
    return np.linalg.solve(gram + penalty, x.T @ y).T


def assert_optimal(case, fitted, p, s):
    """Regression of the fits on the optimum: a slope of 1 in each input, within 4 standard errors over the chains."""
    wanted = optimum(case, p, s)
    slopes = (fitted * wanted).sum(1) / (wanted**2).sum(0)  # (chain, D)
    error = slopes.std(0, ddof=1) / np.sqrt(CHAINS)
    assert (error < 0.01).all()
    assert (np.abs(slopes.mean(0) - 1) < 4 * error + 1e-3).all(), f"{slopes.mean(0)} +- {error} instead of 1"


def test_the_optimum_of_a_linear_model_is_adaptive_l2():
    case, fitted = linear_fit()
    assert_optimal(case, fitted, P, 0.5)
    # Neither another rate, nor a prior that is off by a fifth, nor a prior that counts once a row would pass.
    for p, s in ((1.2 * P, 0.5), (P, 0.5 / 1.2**0.5), (P, 0.5 / case.n**0.5), (0.0, 0.5)):
        with pytest.raises(AssertionError, match="instead of 1"):
            assert_optimal(case, fitted, p, s)


# What is refused, and the contract


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_the_contract(p, tmp_path):
    assert_contract(bnn.MCDropout(), net_with_dropout(p), tmp_path)


def test_batch_norm_beside_dropout_predicts_with_its_running_statistics():
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(P), nn.Linear(8, 1))
    posterior = fit(bnn.MCDropout(), net)
    alone = torch.cat([posterior.predict(row[None]).draws for row in X[:4]], 2)
    torch.testing.assert_close(alone, posterior.predict(X[:4]).draws)


class Calls(nn.Module):
    """A net whose dropout is where ``how`` says."""

    def __init__(self, how):
        super().__init__()
        self.how, self.first, self.last = how, nn.Linear(2, 4), nn.Linear(4, 1)
        self.drop, self.alpha = nn.Dropout(0.5), nn.AlphaDropout(0.5)
        if how != "alpha":
            del self.alpha
        if how == "functional only":
            del self.drop

    def forward(self, x):
        h = self.first(x)
        if self.how == "twice":
            h = self.drop(self.drop(h))
        elif self.how in ("functional", "functional only"):
            h = F.dropout(h if self.how == "functional only" else self.drop(h), 0.2, self.training)
        elif self.how == "in training only":
            h = self.drop(h) if self.training else h
        elif self.how == "transposed":
            h = self.drop(h.T).T
        elif self.how == "alpha":
            h = self.alpha(h)
        return self.last(h)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.attention, self.last = nn.Linear(1, 4), nn.MultiheadAttention(4, 1, 0.1, batch_first=True), None
        self.last = nn.Linear(4, 1)

    def forward(self, x):
        h = self.up(x[..., None])
        return self.last(self.attention(h, h, h)[0].mean(1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bnn.nets.MLP(2, (4,), 1), "Expected a net with dropout for MCDropout, got one without: .* use MAP"),
        (lambda: Calls("twice"), "got 'net.drop' called 2 times a forward pass"),
        (lambda: Calls("functional"), "got a net that is random in train mode without them"),
        (lambda: Calls("functional only"), "got a net that is random in train mode without them"),
        (lambda: Calls("in training only"), "got 'net.drop' called 0.5 times a forward pass, or not in eval mode"),
        (lambda: Calls("transposed"), r"got 'net.drop' on features \(4, 2\) of 2 rows"),
        (lambda: Calls("alpha"), "got AlphaDropout 'alpha'"),
        (Attention, "got MultiheadAttention 'attention'"),
        (lambda: nn.Sequential(nn.Linear(2, 4), nn.Dropout1d(0.5), nn.Linear(4, 1)), r"on features \(2, 4\) of 2 rows"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
def test_dropout_without_a_mask_is_refused_in_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        fit(bnn.MCDropout(), make())
    assert "\n" not in str(error.value)


def test_a_loader_works_and_another_net_does_not_load(tmp_path):
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=8)
    model = bnn.BayesianModel(net_with_dropout(), likelihood=likelihoods.Normal())
    posterior = bnn.fit(model, loader, bnn.MCDropout(), epochs=2, progress=False)
    assert posterior.predict(X, draws=3).draws.shape == (1, 3, 24)
    posterior.save(tmp_path)
    other = nn.Module()
    other.layers = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Tanh(), nn.Linear(16, 1))
    other.forward = lambda x: other.layers(x)
    with pytest.raises(ValueError, match=r"Expected a dropout module .net\.layers\.2., got Tanh: give the net"):
        bnn.Posterior.load(tmp_path, other).predict(X)


def test_bad_options():
    with pytest.raises(ValueError, match="Expected lr > 0"):
        bnn.MCDropout(lr=0)
    with pytest.raises(ValueError, match="Unknown schedule"):
        bnn.MCDropout(schedule="cosin")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda():
    for method in [bnn.MCDropout()]:
        assert_works_on_cuda(method, net_with_dropout())
