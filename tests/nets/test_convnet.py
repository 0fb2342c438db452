import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bayesnn.nets import ConvNet


def test_parameters_of_the_default():
    net = ConvNet((3, 32, 32), num_outputs=10)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters() if name.endswith("weight")}
    assert shapes == {
        "blocks.0.conv.weight": (32, 3, 3, 3),
        "blocks.1.conv.weight": (64, 32, 3, 3),
        "head.0.weight": (128, 64 * 8 * 8),
        "head.2.weight": (10, 128),
    }


def test_output_is_the_formula():
    net = ConvNet((1, 8, 8), 3, channels=(4,), kernel_size=5, pool=2, dense=(), padding="valid", activation="tanh")
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    p = dict(net.named_parameters())
    h = F.max_pool2d(torch.tanh(F.conv2d(x, p["blocks.0.conv.weight"], p["blocks.0.conv.bias"])), 2)
    torch.testing.assert_close(net(x), F.linear(h.flatten(1), p["head.0.weight"], p["head.0.bias"]))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel_size", [(3, 5), (1, 7), 3])
@pytest.mark.parametrize("pool", [1, 2, (3, 1)])
def test_any_shape_the_constructor_takes_works(padding, kernel_size, pool):
    net = ConvNet((2, 23, 26), 5, channels=(3, 4), kernel_size=kernel_size, pool=pool, padding=padding)
    assert net(torch.zeros(2, 2, 23, 26)).shape == (2, 5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_an_even_kernel_keeps_the_size_with_same_padding():
    net = ConvNet((1, 8, 8), 3, channels=(2,), kernel_size=4, pool=1, dense=())
    assert net.head[0].in_features == 2 * 8 * 8
    assert net(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


@pytest.mark.parametrize(
    ("padding", "kernel_size", "pool", "smallest"),
    [
        ("same", 3, 2, 8),
        ("valid", 3, 2, 22),
        ("valid", (5, 3, 1), (2, 3, 1), 14),
    ],
)
def test_the_smallest_size_that_the_error_names_is_the_smallest(padding, kernel_size, pool, smallest):
    options = {"channels": (2, 2, 2), "kernel_size": kernel_size, "pool": pool, "padding": padding}
    with pytest.raises(ValueError, match=rf"at least {smallest}x{smallest}, or take fewer blocks"):
        ConvNet((1, smallest - 1, 40), 3, **options)
    net = ConvNet((1, smallest, smallest), 3, **options)
    assert net(torch.zeros(1, 1, smallest, smallest)).shape == (1, 3)


def test_too_small_names_the_block_and_the_size_that_came():
    with pytest.raises(ValueError, match=r"at least 2x2 before block 2 \(kernel_size 3, pool 2.*got 1x2 from in_shape"):
        ConvNet((1, 4, 8), 3, channels=(2, 2, 2))


def test_dropout_follows_every_block_and_hidden_layer():
    net = ConvNet((1, 8, 8), 3, channels=(2, 2), dense=(5, 6), dropout=0.5)
    kinds = [type(m) for block in net.blocks for m in block] + [type(m) for m in net.head]
    assert kinds == [nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Dropout] * 2 + [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [
        nn.Linear
    ]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"channels": ()}, "use MLP"),
        ({"kernel_size": (3,)}, "kernel_size: expected 2 entries, one per block, got 1"),
        ({"pool": (2, 2, 2)}, "pool: expected 2 entries"),
        ({"pool": 0}, "pool"),
        ({"padding": "full"}, "'same' or 'valid', got 'full'"),
        ({"dense": (0,)}, r"dense\[0\]"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ConvNet((1, 28, 28), 10, **options)


def test_other_images_than_in_shape_are_refused():
    with pytest.raises(
        ValueError, match=r"ConvNet: expected images of shape \(batch, 3, 32, 32\), got \(2, 32, 32, 3\)"
    ):
        ConvNet((3, 32, 32), 10)(torch.zeros(2, 32, 32, 3))


def test_strides_norms_and_poolings_are_the_formula():
    net = ConvNet((2, 12, 12), 3, (6,), 3, 2, (), stride=2, pooling="average", norm="group", padding="valid")
    x = torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(0))
    p = dict(net.named_parameters())
    h = F.conv2d(x, p["blocks.0.conv.weight"], p["blocks.0.conv.bias"], stride=2)
    h = F.group_norm(h, 2, p["blocks.0.norm.weight"], p["blocks.0.norm.bias"]).relu()
    h = F.avg_pool2d(h, 2)
    torch.testing.assert_close(net(x), F.linear(h.flatten(1), p["head.0.weight"], p["head.0.bias"]))


def test_maxout_takes_the_place_of_the_activation_and_a_global_average_that_of_the_pixels():
    net = ConvNet((1, 8, 8), 3, (5,), 3, 2, (), maxout=4, global_average=True)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    p = dict(net.named_parameters())
    assert p["blocks.0.conv.weight"].shape == (20, 1, 3, 3)
    h = F.conv2d(x, p["blocks.0.conv.weight"], p["blocks.0.conv.bias"], padding=1)
    h = F.max_pool2d(h.unflatten(1, (5, 4)).amax(2), 2).mean((2, 3))
    torch.testing.assert_close(net(x), F.linear(h, p["head.0.weight"], p["head.0.bias"]))


def test_frn_brings_its_own_activation():
    net = ConvNet((1, 8, 8), 3, (5,), norm="frn")
    assert [name for name, _ in net.blocks[0].named_parameters()] == [
        "conv.weight", "conv.bias", "norm.gamma", "norm.beta", "act.tau"
    ]  # fmt: skip


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [2, (3, 1)])
@pytest.mark.parametrize("side", [9, 24, 31])
def test_any_stride_that_the_constructor_takes_works(padding, stride, side):
    try:
        net = ConvNet((2, side, side), 5, channels=(3, 4), kernel_size=(5, 3), pool=2, padding=padding, stride=stride)
    except ValueError as error:
        smallest = int(str(error).split("images must be at least ")[1].split("x")[0])
        assert side < smallest
        net = ConvNet((2, smallest, smallest), 5, (3, 4), (5, 3), 2, padding=padding, stride=stride)
        with pytest.raises(ValueError, match="images must be at least"):
            ConvNet((2, smallest - 1, smallest), 5, (3, 4), (5, 3), 2, padding=padding, stride=stride)
    assert net(torch.zeros(2, *net.in_shape)).shape == (2, 5)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="expected an odd one with padding 'same' and stride 2, got 4"):
        ConvNet((1, 28, 28), 10, (8,), 4, stride=2)
    with pytest.raises(ValueError, match="pooling"):
        ConvNet((1, 28, 28), 10, (8,), pooling="median")
    with pytest.raises(ValueError, match="norm"):
        ConvNet((1, 28, 28), 10, (8,), norm="layer")
