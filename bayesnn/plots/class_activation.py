"""Where in an image a net finds its class, with the posterior standard deviation."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesnn.plots._style import AxesArray, layout
from bayesnn.plots.filters import _layer, _nets

if TYPE_CHECKING:
    from bayesnn.posterior import Posterior


def class_activation(
    posterior: Posterior,
    x: Tensor,
    label: int | None = None,
    layer: str | None = None,
    chain: int = 0,
    draws: int | None = None,
    seed: int = 0,
) -> AxesArray:
    """What each place of an image adds to the logit of a class: mean over the posterior, and standard deviation.

    Of a net that ends in global average pooling of feature maps f_k(i, j), (channel, height, width), and a linear layer
    w, b, the class activation map of class c (Zhou et al. 2016)

        M_c(i, j) = sum_k w_ck f_k(i, j) / (height width),        sum_ij M_c(i, j) = logit_c - b_c

    and of any other net, or of a ``layer`` that is named, Grad-CAM (Selvaraju et al. 2017)

        M_c(i, j) = max(0, sum_k alpha_k f_k(i, j)),    alpha_k = mean_ij of d logit_c / d f_k(i, j)

    which is the former's positive part where both apply. Maps are made of each draw and interpolated to the image.

    Parameters
    ----------
    posterior : Posterior
        Of a net with outputs (batch, classes).
    x : Tensor, (channel, height, width)
        One input, as the net takes it.
    label : int, optional
        The class; by default the one that the chain's draws find most probable.
    layer : str, optional
        Name of a module that returns (batch, channel, height, width): by default what is pooled, or the last
        ``nn.Conv2d``.
    chain, draws, seed : as in :func:`bayesnn.plots.filters`.

    Returns
    -------
    array of 3 Axes
        The image; the mean of the maps over it; their standard deviation over it.

    Raises
    ------
    ValueError
        If there is no such layer or class, the layer was not called once or returned something else, or the chain has a
        single draw.

    References
    ----------
    Zhou, Khosla, Lapedriza, Oliva & Torralba 2016, Learning deep features for discriminative localization, CVPR.
    Selvaraju et al. 2017, Grad-CAM: visual explanations from deep networks via gradient-based localization, ICCV.
    """
    if x.dim() != 3:
        raise ValueError(f"Expected one image (channel, height, width), got {tuple(x.shape)}: take one of a batch.")
    net = posterior.model.net
    rows = x[None].to(next(net.parameters()))
    pooled = None if layer is not None else _pooled(net, rows)
    if pooled is not None:
        found = [_pooled_maps(one, rows, label, *pooled) for one in _nets(posterior, chain, draws, seed)]
        label = label if label is not None else _most_probable([out for out, _ in found])
        maps = [each[label] for _, each in found]
    else:
        layer = _layer(posterior, layer)[0] if layer is not None else _last_conv(net)
        if label is None:  # a walk of its own: a gradient is of one class, and which one all draws decide together
            with torch.no_grad():
                label = _most_probable([one(rows) for one in _nets(posterior, chain, draws, seed)])
        maps = [_map(one, rows, label, layer) for one in _nets(posterior, chain, draws, seed)]
    full = F.interpolate(torch.stack(maps)[:, None], x.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    kind, unit = ("class activation", "part of the logit") if pooled is not None else (f"Grad-CAM, {layer}", "Grad-CAM")
    return _draw(x, full.double().cpu(), f"{kind}: class {label} ({len(maps)} draws of one chain)", unit)


def _recorded(
    net: nn.Module, rows: Tensor, layers: Collection[str]
) -> tuple[Tensor, dict[str, list[Any]], dict[str, list[Any]]]:
    """Outputs of a pass, and of each of these modules what came in (first) and what went out, once a call."""
    inputs: dict[str, list[Any]] = {}
    outputs: dict[str, list[Any]] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
            inputs.setdefault(name, []).append(next(iter((*args, *named.values())), None))
            outputs.setdefault(name, []).append(output)
            return output.clone() if isinstance(output, Tensor) else output  # what follows may write into it

        return net.get_submodule(name).register_forward_hook(hook, with_kwargs=True)

    handles = [watch(name) for name in layers]
    try:
        out: Tensor = net(rows)
    finally:
        for handle in handles:
            handle.remove()
    return out, inputs, outputs


@torch.no_grad()
def _pooled(net: nn.Module, rows: Tensor) -> tuple[str, str] | None:
    """Names of the module whose feature maps are averaged and of the linear layer that makes logits of them."""
    modules = dict(net.named_modules())
    out, inputs, outputs = _recorded(net, rows, modules)
    for head, module in modules.items():
        if not isinstance(module, nn.Linear) or len(outputs.get(head, ())) != 1:
            continue
        if not torch.equal(outputs[head][0], out):
            continue
        for name, maps in outputs.items():
            one = maps[0]
            if len(maps) == 1 and isinstance(one, Tensor) and one.dim() == 4 and one.shape[2:].numel() > 1:
                mean = one.mean((2, 3))
                if mean.shape == inputs[head][0].shape and torch.allclose(mean, inputs[head][0], 1e-4, 1e-6):
                    return name, head
    return None


def _last_conv(net: nn.Module) -> str:
    names: list[str] = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    if not names:
        raise ValueError("the net must have an nn.Conv2d; got none: name a layer that returns images")
    return names[-1]


@torch.no_grad()
def _pooled_maps(
    net: nn.Module, rows: Tensor, label: int | None, layer: str, head: str
) -> tuple[Tensor, dict[int, Tensor]]:
    """Outputs, and M_c of the weights as they are, (height, width), of class ``label``, or by default of each."""
    out, _, outputs = _recorded(net, rows, (layer,))
    if label is not None:
        _check_label(label, out)
    f = outputs[layer][0][0]  # (channel, height, width)
    weight = net.get_submodule(head).weight
    assert isinstance(weight, Tensor)
    labels = range(out.shape[1]) if label is None else (label,)
    return out, {c: torch.einsum("k,khw->hw", weight[c], f) / f.shape[1:].numel() for c in labels}


def _map(net: nn.Module, rows: Tensor, label: int, layer: str) -> Tensor:
    """Grad-CAM of the weights as they are, (height, width)."""
    with torch.enable_grad():
        out, _, outputs = _recorded(net, rows.detach().requires_grad_(), (layer,))
        _check_label(label, out)
        seen = outputs.get(layer, [])
        if len(seen) != 1 or not isinstance(seen[0], Tensor) or seen[0].dim() != 4:
            got = f"{len(seen)} calls" if len(seen) != 1 else f"{tuple(getattr(seen[0], 'shape', ()))}"
            raise ValueError(
                f"layer {layer!r} must return (batch, channel, height, width), once; got {got}: name another"
            )
        (slope,) = torch.autograd.grad(out[0, label], seen[0], materialize_grads=True)
    alpha = slope[0].mean((1, 2))
    total: Tensor = torch.einsum("k,khw->hw", alpha, seen[0][0].detach())
    return total.clamp_min(0)


def _check_label(label: int, out: Tensor) -> None:
    if out.dim() != 2:
        raise ValueError(f"the net must return (batch, classes); got {tuple(out.shape)}: a map is one of a class")
    if not 0 <= label < out.shape[1]:
        raise ValueError(f"label must be in [0, {out.shape[1]}); got {label}")


def _most_probable(outs: Sequence[Tensor]) -> int:
    """The class with the largest mean probability over the draws' outputs, each (1, classes)."""
    return int(torch.stack([out.softmax(-1) for out in outs]).mean(0)[0].argmax())


def _draw(x: Tensor, maps: Tensor, title: str, unit: str) -> AxesArray:
    """The image, and mean and sd of the maps (draw, height, width) over it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.0), layout=layout())
    axes: AxesArray = figure.subplots(1, 3)
    image = x.detach().double().cpu()
    image = (image - image.min()) / (image.max() - image.min()).clamp_min(1e-12)
    shown = np.asarray(image.permute(1, 2, 0) if len(image) == 3 else image.mean(0))
    mean, sd = np.asarray(maps.mean(0)), np.asarray(maps.std(0))
    axes[0].imshow(shown, cmap="Greys", vmin=0, vmax=1)
    axes[0].set_title("input", fontsize=14)
    top = float(np.abs(mean).max()) or 1.0
    upwards = {"cmap": "cividis", "vmin": 0.0}
    # Red speaks for the class, blue against it, and what is white does not matter.
    signed = {"cmap": "RdBu_r", "vmin": -top, "vmax": top} if mean.min() < 0 else {**upwards, "vmax": top}
    outline = shown if shown.ndim == 2 else shown.mean(-1)
    for ax, values, name, look in (
        (axes[1], mean, "mean", signed),
        (axes[2], sd, "sd", {**upwards, "vmax": float(sd.max()) or 1.0}),
    ):
        drawn = ax.imshow(values, **look)
        if min(outline.shape) > 1 and outline.min() < outline.max():
            colour = "white" if look["cmap"] == "cividis" else "black"
            ax.contour(outline, levels=[(outline.min() + outline.max()) / 2], colors=colour, linewidths=1.2)
        ax.set_title(name, fontsize=14)
        bar = figure.colorbar(drawn, ax=ax, shrink=0.85)
        bar.set_label(unit, fontsize=12)
        bar.ax.tick_params(labelsize=11)
    for ax in axes:
        ax.set_xticks([])
        ax.set_yticks([])
    figure.suptitle(title, fontsize=14)
    return axes
