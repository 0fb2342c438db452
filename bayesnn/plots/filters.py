"""What a conv layer looks for and what it sees, each with the posterior standard deviation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bayesnn.errors import at_least
from bayesnn.plots._style import AxesArray, layout
from bayesnn.rng import generator

if TYPE_CHECKING:
    from bayesnn.posterior import Posterior

DRAWS = 50  # of a distribution


def filters(
    posterior: Posterior,
    layer: str | None = None,
    channel: int = 0,
    most: int = 8,
    chain: int = 0,
    draws: int | None = None,
    seed: int = 0,
) -> AxesArray:
    """The filters of a conv layer as images: posterior mean above, standard deviation below.

    Of one chain: the filters of another one may stand in another order, and a mean over both is of neither.

    Parameters
    ----------
    posterior : Posterior
        Of a net with an ``nn.Conv2d``.
    layer : str, optional
        Name of the layer; by default the first ``nn.Conv2d``.
    channel : int
        The input channel whose kernel is drawn.
    most : int
        Filters that are drawn, the first ones.
    chain, draws, seed : of the draws, as in ``posterior.net``; 50 of a distribution by default, all of those stored.

    Returns
    -------
    array of Axes, (2, filter)

    Raises
    ------
    ValueError
        If there is no such layer or channel, or the chain has a single draw.
    """
    name, module = _layer(posterior, layer)
    if not isinstance(module, nn.Conv2d):
        raise ValueError(f"layer must be an nn.Conv2d; got {name!r}, a {type(module).__name__}: name another")
    if not 0 <= channel < module.weight.shape[1]:
        raise ValueError(f"channel must be in [0, {module.weight.shape[1]}); got {channel}")
    at_least("most", most, 1)
    weights = [net.get_parameter(f"{name}.weight").detach().clone() for net in _nets(posterior, chain, draws, seed)]
    kernels = torch.stack([weight[:most, channel] for weight in weights])  # (draw, filter, height, width)
    what = f"{name}: filters on input channel {channel}" if module.weight.shape[1] > 1 else f"{name}: filters"
    return _mean_and_sd(kernels, what, "weight")


def feature_maps(
    posterior: Posterior,
    x: Tensor,
    layer: str | None = None,
    most: int = 8,
    chain: int = 0,
    draws: int | None = None,
    seed: int = 0,
) -> AxesArray:
    """What a layer makes of one input: mean of its feature maps over the posterior above, standard deviation below.

    Parameters
    ----------
    posterior : Posterior
    x : Tensor, (channel, height, width)
        One input, as the net takes it.
    layer : str, optional
        Name of a module that returns (batch, channel, height, width); by default the first ``nn.Conv2d``.
    most : int
        Maps that are drawn, the first ones.
    chain, draws, seed : as in `filters`, for the same reason.

    Returns
    -------
    array of Axes, (2, map)

    Raises
    ------
    ValueError
        If there is no such layer, it was not called or returned something else, or the chain has a single draw.
    """
    name, _ = _layer(posterior, layer)
    at_least("most", most, 1)
    maps = []
    for net in _nets(posterior, chain, draws, seed):
        seen: list[Any] = []
        hook = net.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, to=seen: to.append(output)
        )
        first = next(net.parameters())
        with torch.no_grad():
            net(x[None].to(first))
        hook.remove()
        if not seen or not isinstance(seen[0], Tensor) or seen[0].dim() != 4:
            got = "no call" if not seen else f"{tuple(getattr(seen[0], 'shape', ()))}"
            raise ValueError(f"layer {name!r} must return (batch, channel, height, width); got {got}: name another")
        maps.append(seen[0][0, :most].clone())
    return _mean_and_sd(torch.stack(maps), f"{name}: feature maps", "activation")


def _layer(posterior: Posterior, layer: str | None) -> tuple[str, nn.Module]:
    modules = {name: module for name, module in posterior.model.net.named_modules() if name}
    if layer is not None and layer not in modules:
        raise ValueError(f"layer must be one of {', '.join(modules)}; got {layer!r}")
    if layer is None:
        layer = next((name for name, module in modules.items() if isinstance(module, nn.Conv2d)), None)
    if layer is None:
        raise ValueError("the net must have an nn.Conv2d; got none: name a layer that returns images")
    return layer, modules[layer]


def _nets(posterior: Posterior, chain: int, draws: int | None, seed: int) -> Iterator[nn.Module]:
    """One net, with the weights of each of a chain's draws in turn: what is read of it has to be copied."""
    if not 0 <= chain < posterior.num_chains:
        raise ValueError(f"chain must be in [0, {posterior.num_chains}); got {chain}")
    source = posterior.sources[chain]
    wanted = (source.num_draws or DRAWS) if draws is None else draws
    if source.num_draws == 1 or at_least("draws", wanted, 1) == 1:
        raise ValueError("the chain must have several draws; got 1: a point estimate has no standard deviation")
    model = source.bind(posterior.model).copy()
    device = next(model.parameters()).device
    for state in source.states(wanted, generator(seed, chain, device=device)):
        model.load_state(state)
        yield model.net


def _mean_and_sd(values: Tensor, title: str, unit: str) -> AxesArray:
    """Images (draw, image, height, width): the mean of each in the upper row, the sd in the lower one."""
    from matplotlib.figure import Figure

    count = values.shape[1]
    figure = Figure(figsize=(1.35 * count + 1.4, 3.6), layout=layout())
    axes: AxesArray = figure.subplots(2, count, squeeze=False)
    parts: list[NDArray[Any]] = [values.double().mean(0).cpu().numpy(), values.double().std(0).cpu().numpy()]
    # Cividis rises in lightness from end to end: it reads the same in grey and in every kind of colour vision.
    for row, (part, name) in enumerate(zip(parts, ("mean", "sd"), strict=True)):
        low, high = (float(part.min()), float(part.max())) if row == 0 else (0.0, float(part.max()))
        for k in range(count):
            ax = axes[row, k]
            drawn = ax.imshow(part[k], cmap="cividis", vmin=low, vmax=high if high > low else low + 1)
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(str(k), fontsize=12)
        axes[row, 0].set_ylabel(name, fontsize=13)
        bar = figure.colorbar(drawn, ax=list(axes[row]), shrink=0.85, aspect=12)
        bar.set_label(unit, fontsize=12)
    figure.suptitle(f"{title} ({len(values)} draws of one chain)", fontsize=14)
    return np.asarray(axes)
