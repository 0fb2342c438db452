import pytest
import torch
from torch import nn

from bayesnn.nets import FilterResponseNorm, Maxout, ResNet, ThresholdedLinearUnit


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_frn_is_its_formula():
    layer = FilterResponseNorm(3, eps=1e-3).double()
    with torch.no_grad():
        layer.gamma.copy_(torch.tensor([1.0, 2.0, -1.0]))
        layer.beta.copy_(torch.tensor([0.0, 0.5, 1.0]))
    x = images(2, 3, 4, 5)
    out = layer(x)
    for row in range(2):
        for channel in range(3):
            one = x[row, channel]
            nu = float((one**2).sum()) / 20
            wanted = layer.gamma[channel] * one / (nu + 1e-3) ** 0.5 + layer.beta[channel]
            torch.testing.assert_close(out[row, channel], wanted)
    layer.reset_parameters()
    torch.testing.assert_close(layer(x).square().mean((2, 3)), torch.ones(2, 3).double(), atol=0.02, rtol=0)


def test_tlu_is_relu_with_a_threshold_to_each_channel():
    layer = ThresholdedLinearUnit(2).double()
    x = images(3, 2, 2, 2)
    assert torch.equal(layer(x), x.relu())
    with torch.no_grad():
        layer.tau.copy_(torch.tensor([-1.0, 0.5]))
    assert torch.equal(layer(x)[:, 0], x[:, 0].clamp_min(-1.0))
    assert torch.equal(layer(x)[:, 1], x[:, 1].clamp_min(0.5))


@pytest.mark.parametrize(("norm", "independent"), [("frn", True), ("group", True), ("batch", False)])
def test_rows_are_independent_where_a_posterior_needs_it(norm, independent):
    net = ResNet(20, (3, 16, 16), norm=norm).double().train()
    x = images(4, 3, 16, 16)
    alone, together = net(x[:1]), net(x)[:1]
    assert torch.allclose(alone, together) is independent


def test_maxout_takes_the_largest_of_neighbours():
    x = images(2, 6, 3, 3)
    out = Maxout(3)(x)
    assert out.shape == (2, 2, 3, 3)
    assert torch.equal(out[:, 1], x[:, 3:].max(1).values)
    assert torch.equal(Maxout(2)(torch.tensor([[1.0, 5.0, 3.0, 2.0]])), torch.tensor([[5.0, 3.0]]))
    with pytest.raises(ValueError, match=r"Maxout: expected channels in groups of 4, got \(2, 6, 3, 3\)"):
        Maxout(4)(x)


def test_maxout_over_turned_filters_does_not_mind_a_turn():
    """Four filters, each the other turned by 90 degrees: the answer to an image is that to the image turned."""
    conv = nn.Conv2d(1, 4, 3, bias=False).double()
    first = images(3, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.stack([torch.rot90(first, k) for k in range(4)])[:, None])
    x = images(1, 1, 9, 9, seed=1)
    turned = Maxout(4)(conv(torch.rot90(x, 1, (2, 3))))
    torch.testing.assert_close(turned, torch.rot90(Maxout(4)(conv(x)), 1, (2, 3)))
