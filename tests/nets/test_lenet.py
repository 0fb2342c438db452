import pytest
import torch
import torch.nn.functional as F

from bayesnn.nets import LeNet5


def test_on_28x28_it_has_the_classic_number_of_parameters():
    net = LeNet5()
    assert sum(p.numel() for p in net.parameters()) == 61_706
    assert net.dense1.in_features == 16 * 5 * 5


def test_output_on_28x28_is_the_classic_network():
    net = LeNet5()
    x = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    p = dict(net.named_parameters())
    h = F.max_pool2d(F.conv2d(x, p["conv1.weight"], p["conv1.bias"], padding=2).relu(), 2)
    h = F.max_pool2d(F.conv2d(h, p["conv2.weight"], p["conv2.bias"]).relu(), 2)
    h = F.linear(h.flatten(1), p["dense1.weight"], p["dense1.bias"]).relu()
    h = F.linear(h, p["dense2.weight"], p["dense2.bias"]).relu()
    torch.testing.assert_close(net(x), F.linear(h, p["dense3.weight"], p["dense3.bias"]))


@pytest.mark.parametrize("side", range(4, 41))
def test_every_size_from_4_works(side):
    shape = (3, side, 4)
    assert LeNet5(shape, num_outputs=7)(torch.zeros(2, *shape)).shape == (2, 7)


def test_padding_of_the_second_convolution_is_by_side():
    # 8 -> 4, too small for a 5x5 kernel and a pooling; 28 -> 14, large enough.
    net = LeNet5((1, 8, 28))
    assert net.conv2.padding == (2, 0)
    assert net.dense1.in_features == 16 * 2 * 5


@pytest.mark.parametrize(
    ("shape", "match"),
    [((1, 3, 28), r"before pooling 2, got 1x14 .* at least 4x4"), ((1, 28, 1), r"before pooling 1, got 28x1 .* 4x4")],
)
def test_too_small_images_are_refused(shape, match):
    with pytest.raises(ValueError, match=match):
        LeNet5(shape)


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28, 1), (0, 28, 28)])
def test_in_shape_must_be_channels_height_width(shape):
    with pytest.raises(ValueError, match="in_shape"):
        LeNet5(shape)


@pytest.mark.parametrize("shape", [(2, 28, 28), (2, 3, 28, 28), (2, 784), (2, 1, 28, 27)])
def test_other_images_than_in_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 1, 28, 28\), got \("):
        LeNet5()(torch.zeros(shape))


def test_activation_is_used_four_times():
    net = LeNet5(activation="tanh")
    assert sum(isinstance(m, torch.nn.Tanh) for m in net.modules()) == 4
