"""The nets of the lectures: their numbers of parameters, their smallest images, and a step of each under a prior."""

import pytest
import torch

import bayesnn as bnn
from bayesnn import nets

COUNTS = {
    "3-4-3-1": (lambda: nets.MLP(3, (4, 3), 1), 35),
    "perceptron": (lambda: nets.Perceptron(784, 10), 7850),
    "AlexNet": (nets.AlexNet, 62_378_344),
    "VGG16": (nets.VGG16, 138_357_544),
    "ResNet-18": (lambda: nets.ResNet(18, (3, 224, 224), 1000, norm="batch"), 11_689_512),
    "ResNet-20": (lambda: nets.ResNet(20, norm="batch"), 272_474),
    "ResNet-34": (lambda: nets.ResNet(34, (3, 224, 224), 1000, norm="batch"), 21_797_672),
    "ResNet-50": (lambda: nets.ResNet(50, (3, 224, 224), 1000, norm="batch"), 25_557_032),
    "ResNet-101": (lambda: nets.ResNet(101, (3, 224, 224), 1000, norm="batch"), 44_549_160),
    "ResNet-152": (lambda: nets.ResNet(152, (3, 224, 224), 1000, norm="batch"), 60_192_808),
}


@pytest.mark.parametrize("name", COUNTS)
def test_the_number_of_parameters_is_the_published_one(name):
    make, count = COUNTS[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count


def test_frn_adds_a_threshold_to_each_channel_that_an_activation_follows():
    count = {norm: sum(p.numel() for p in nets.ResNet(20, norm=norm).parameters()) for norm in ("frn", "batch")}
    assert count["frn"] - count["batch"] == 16 + 2 * 3 * (16 + 32 + 64)


@pytest.mark.parametrize(
    ("make", "smallest", "message"),
    [
        (lambda side: nets.VGG16((3, side, side), 2, dense=()), 32, "VGG16: expected images of at least 32x32"),
        (lambda side: nets.AlexNet((3, side, side), 2), 67, "AlexNet: expected images of at least 67x67"),
        (lambda side: nets.ResNet(20, (3, side, side)), 5, "ResNet: expected images of at least 5x5 for 20 layers"),
        (lambda side: nets.ResNet(18, (3, side, side)), 9, "ResNet: expected images of at least 9x9 for 18 layers"),
        (
            lambda side: nets.ResNet(18, (3, side, side), small=False),
            33,
            "ResNet: expected images of at least 33x33 for 18 layers",
        ),
        (lambda side: nets.ConvAutoencoder((1, side, side)), 4, "ConvAutoencoder: expected images of at least 4x4"),
    ],
    ids=["VGG16", "AlexNet", "ResNet-20", "ResNet-18", "ResNet-18, large stem", "ConvAutoencoder"],
)
def test_the_smallest_image_is_the_one_that_the_error_names(make, smallest, message):
    with pytest.raises(ValueError, match=message):
        make(smallest - 1)
    net = make(smallest)
    out = net(torch.zeros(1, *net.in_shape))
    assert torch.isfinite(out).all()
    with pytest.raises(ValueError, match="expected images of shape"):
        net(torch.zeros(1, *net.in_shape)[:, :, 1:])


@pytest.mark.parametrize("small", [True, False])
def test_the_last_stage_of_the_smallest_image_sees_more_than_a_pixel(small):
    side = 9 if small else 33
    net = nets.ResNet(18, (3, side, side), small=small)
    assert net.stages(net.stem(torch.zeros(1, 3, side, side))).shape[2:] == (2, 2)


def test_the_perceptron_is_a_linear_map():
    net = nets.Perceptron(6, 2)
    x = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(x), x.flatten(1) @ net.linear.weight.T + net.linear.bias)
    with pytest.raises(ValueError, match="Perceptron: expected inputs of shape"):
        net(torch.zeros(4, 5))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 9, 14)])
def test_autoencoders_give_back_images_of_the_same_size(shape):
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    for net in (
        nets.Autoencoder(shape, (20, 5)),
        nets.ConvAutoencoder(shape),
        nets.ConvAutoencoder(shape, (4, 6, 8), code=5),
    ):
        assert net(x).shape == x.shape
    assert nets.Autoencoder(shape, (20, 5), outputs=2)(x).shape == (2, 2 * shape[0], *shape[1:])
    assert nets.ConvAutoencoder(shape, outputs=2)(x).shape == (2, 2 * shape[0], *shape[1:])
    assert nets.Autoencoder(shape, (20, 5)).encode(x).shape == (2, 5)
    assert nets.ConvAutoencoder(shape, (4,), code=7).encode(x).shape == (2, 7)
    with pytest.raises(ValueError, match="at least one width"):
        nets.Autoencoder(shape, ())
    with pytest.raises(ValueError, match="at least one convolution"):
        nets.ConvAutoencoder(shape, ())


# The dense layers of AlexNet and VGG16 are narrower than in the papers: they are nine tenths of the weights, and the
# same linear layers.
def narrow(net, width=8):
    layers = [module for module in net.head if isinstance(module, torch.nn.Linear)]
    for before, after in zip([None, *layers[:-1]], layers, strict=True):
        shape = (after.out_features if after is layers[-1] else width, after.in_features if before is None else width)
        after.weight = torch.nn.Parameter(torch.zeros(shape))
        after.bias = torch.nn.Parameter(torch.zeros(shape[0]))
        after.out_features, after.in_features = shape
        after.reset_parameters()
    return net


STEPS = {
    "MLP 784-512-512-10": lambda: nets.MLP(784, (512, 512), 10),
    "Perceptron": lambda: nets.Perceptron(784, 10),
    "LeNet5": nets.LeNet5,
    "conv 32 (10) 64 (3) 32 (3), dense 128": lambda: nets.ConvNet((1, 28, 28), 10, (32, 64, 32), (10, 3, 3), (1, 2, 2)),
    "conv 16 32 64 (2), dense 500": lambda: nets.ConvNet((3, 32, 32), 10, (16, 32, 64), 2, 2, (500,)),
    "connectomics": lambda: nets.ConvNet((4, 75, 75), 2, (64, 48, 48, 48), 3, (1, 2, 1, 2)),
    "ConvNet, everything": lambda: nets.ConvNet(
        (3, 32, 32), 10, (8, 8), stride=(2, 1), pooling="average", norm="group", maxout=2, global_average=True
    ),
    "ResNet-20": nets.ResNet,
    "ResNet-18": lambda: nets.ResNet(18, (3, 224, 224), 5),
    "ResNet-50": lambda: nets.ResNet(50, (3, 224, 224), 5, norm="group"),
    "AlexNet": lambda: narrow(nets.AlexNet(num_outputs=5)),
    "VGG16": lambda: nets.VGG16(num_outputs=5, dense=(8,)),
}


WITH_DROPOUT = {
    "MLP": lambda: nets.MLP(16, (8, 8), 5, dropout=0.5),
    "ConvNet": lambda: nets.ConvNet((1, 8, 8), 5, (4,), dense=(8, 8), dropout=0.5),
    "AlexNet": lambda: narrow(nets.AlexNet((1, 67, 67), 5, dropout=0.5)),
    "VGG16": lambda: nets.VGG16((1, 32, 32), 5, dense=(8, 8), dropout=0.5),
}


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_has_masks_that_mc_dropout_can_hold(name):
    net = WITH_DROPOUT[name]()
    x = torch.rand(3, *getattr(net, "in_shape", (16,)), generator=torch.Generator().manual_seed(0))
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Categorical())
    posterior = bnn.fit(model, (x, torch.arange(3)), bnn.MCDropout(), epochs=1, init="net", progress=False)
    assert posterior.predict(x, draws=4).draws.std(1).max() > 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", STEPS)
def test_each_takes_a_step_of_vi_and_of_sgld_and_predicts(name):
    net = STEPS[name]()
    shape = getattr(net, "in_shape", (1, 28, 28))
    rows = 1 if shape[1] > 200 else 2
    x, y = torch.rand(rows, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(rows)
    model = bnn.BayesianModel(net, likelihood=bnn.likelihoods.Categorical())
    first = "net." + next(name for name, _ in net.named_parameters())
    for method, steps in ((bnn.MeanFieldVI(), 1), (bnn.SGLD(lr=1e-6, burn_in=0.0, warm_up=0.5), 2)):
        posterior = bnn.fit(model, (x, y), method, epochs=steps, batch_size=None, chains=1, progress=False)
        torch.testing.assert_close(posterior.predict(x, draws=1).mean.sum(1), torch.ones(rows))
        assert not torch.equal(posterior.sources[0].last()[first], model.state()[first])


@pytest.mark.parametrize("make", [nets.Autoencoder, nets.ConvAutoencoder])
def test_autoencoders_are_fitted_with_a_distribution_for_each_pixel(make):
    x = bnn.data.load("digits")[0].x[:64]
    model = bnn.BayesianModel(make((1, 8, 8)), likelihood=bnn.likelihoods.Normal())
    posterior = bnn.fit(model, (x, x), bnn.SGLD(draws=4), epochs=3, chains=2, progress=False)
    predictive = posterior.predict(x)
    assert predictive.mean.shape == predictive.epistemic.shape == x.shape
    assert float(predictive.epistemic.min()) >= 0
