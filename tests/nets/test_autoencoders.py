"""What an autoencoder's posterior says of single pixels: benchmarks/reconstruction.py in short."""

import torch

import bayesnn as bnn


def test_pixels_of_what_are_no_digits_are_less_sure():
    train, test = bnn.data.load("digits")
    x, own = (part.inputs.inverse(part.x) for part in (train, test))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    other = own.flatten(1)[:, order].view_as(own)  # the same pixels in another order
    model = bnn.BayesianModel(bnn.nets.Autoencoder((1, 8, 8), (32, 8)), likelihood=bnn.likelihoods.Normal())
    posterior = bnn.fit(model, (x, x), bnn.MAP(lr=1e-2), epochs=15, chains=3, progress=False)
    uncertainty = {}
    for name, images in (("own", own), ("other", other)):
        predictive = posterior.predict(images)
        assert predictive.epistemic.shape == images.shape
        uncertainty[name] = predictive.epistemic.flatten(1).mean(1)
    assert uncertainty["other"].mean() > 1.5 * uncertainty["own"].mean()
    assert bnn.metrics.auroc(uncertainty["own"], uncertainty["other"]) > 0.9
