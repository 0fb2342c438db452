"""Frozen parts of a net: constants in every method, in train mode as they are at prediction."""

import copy

import pytest
import torch
from torch import nn

import bayesnn as bnn
from bayesnn import likelihoods, nets, priors
from bayesnn.initial import reset_parameters

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)) + 2
Y = X.sum(1).sin()


def pretrained(affine=True):
    """A trunk whose running statistics are far from those of X, with dropout, and a head."""
    trunk = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6, affine=affine), nn.Tanh(), nn.Dropout(0.5))
    with torch.no_grad():
        trunk[1].running_mean.fill_(0.3)
        trunk[1].running_var.fill_(2.0)
    return nn.Sequential(trunk, nn.Linear(6, 1))


METHODS = {
    "MAP": bnn.MAP(),
    "MeanFieldVI": bnn.MeanFieldVI(),
    "SGHMC": bnn.SGHMC(draws=2),
    "Laplace": bnn.Laplace(),
    "SWAG": bnn.SWAG(),
    "SVGD": bnn.SVGD(particles=2),
    "HMC": bnn.HMC(),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("init", ["net", "fresh"])
@pytest.mark.parametrize("affine", [True, False])
def test_a_frozen_trunk_stays_and_the_posterior_is_that_of_its_head_on_its_features(name, init, affine):
    net = nets.freeze(pretrained(affine), but="1")
    options = {"epochs": 3, "chains": 1, "init": init, "progress": False, "batch_size": 16}
    model = bnn.BayesianModel(net, priors.Normal(1.0), likelihoods.Normal(0.3))
    assert set(model.log_priors) == {"net.1.weight", "net.1.bias"}
    assert not model.moving
    whole = bnn.fit(model, (X, Y), METHODS[name], **options)
    fitted = whole.net(0).state_dict()
    trunk = {key: value for key, value in net.state_dict().items() if key.startswith("0.")}
    assert all(torch.equal(fitted[key], value) for key, value in trunk.items())
    if init == "fresh":  # the trunk's layers take random numbers too, although they keep their weights
        return

    features = nets.features(net, bnn.data.Data(X, Y))
    alone = bnn.BayesianModel(copy.deepcopy(net[1]), priors.Normal(1.0), likelihoods.Normal(0.3))
    head = bnn.fit(alone, features, METHODS[name], **options)
    # The same numbers are drawn: what differs is the rounding of the same sums.
    torch.testing.assert_close(
        whole.predict(X, draws=2).mean, head.predict(features.x, draws=2).mean, rtol=1e-4, atol=1e-5
    )


def test_statistics_of_what_is_trained_move_beside_those_of_what_is_frozen():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    net = nets.freeze(net, ["0", "1"])
    model = bnn.BayesianModel(net, likelihood=likelihoods.Normal(0.3))
    assert model.moving == {f"net.3.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    for method in (bnn.MAP(), bnn.SGLD(draws=2)):
        fitted = bnn.fit(model, (X, Y), method, epochs=3, chains=1, progress=False).net(0)
        assert torch.equal(fitted[1].running_mean, net[1].running_mean)
        assert not torch.equal(fitted[3].running_mean, net[3].running_mean)


def test_a_partly_frozen_module_is_in_train_mode_and_a_frozen_one_is_not():
    net = nn.Sequential(
        nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5)), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    )
    net = nets.freeze(net, "0")
    model = bnn.BayesianModel(net, likelihood=likelihoods.Normal(0.3)).train()
    assert [module.training for module in (model.net, *model.net)] == [True, False, True]
    assert not model.net[0][1].training
    assert model.net[1][1].training
    assert not any(module.training for module in model.eval().modules())


def test_fresh_weights_leave_the_buffers_of_a_frozen_part_alone():
    model = bnn.BayesianModel(nets.freeze(pretrained(), but="1"), likelihood=likelihoods.Normal(0.3))
    head = model.net[1].weight.clone()
    reset_parameters(model)
    assert float(model.net[0][1].running_mean.mean()) == pytest.approx(0.3)
    assert not torch.equal(model.net[1].weight, head)


def test_chains_that_run_as_one_drop_nothing_in_a_frozen_part():
    net = nets.freeze(pretrained(), but="1")
    model = bnn.BayesianModel(net, priors.Normal(1.0), likelihoods.Normal(0.3))
    options = {"epochs": 3, "chains": 2, "init": "net", "batch_size": None, "order": "sequential", "progress": False}
    one, together = (bnn.fit(model, (X, Y), bnn.MAP(), vectorize=v, **options) for v in (False, True))
    torch.testing.assert_close(one.predict(X).mean, together.predict(X).mean, rtol=1e-4, atol=1e-5)
