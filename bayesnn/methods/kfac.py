"""The generalised Gauss-Newton matrix layer by layer: its diagonal, and its Kronecker factors.

A layer s = W a + b, with the bias as one more column of W and a 1 below a, has in sum_i J_i' Lambda_i J_i the block
sum_i (a_i a_i') kron (g_i g_i'), g_i = d f_i / d s_i ' R_i with Lambda_i = R_i R_i'. It is approximated by

    A kron G / positions,       A = sum_it a_it a_it',       G = sum_it g_it g_it',

sums over rows i and positions t (of a convolution, Grosse & Martens 2016; one for a plain linear layer), ``positions``
how many these are. With one position a row it is exact where all a_i or all g_i are alike, as in regression.
With T of them it leaves out, as they do, what two positions of a row have in common: where those are alike the data's
precision comes out T times too small. The diagonal, sum_i (sum_t g_it a_it')^2, is exact everywhere, and takes no
Jacobian of the whole net.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayesnn.source_laplace import bias_of

Captured = dict[str, tuple[Tensor, Tensor]]


PIECE_BYTES = 128 * 2**20


@dataclass
class Layer:
    """One layer; ``bias`` where its bias is one of the weights."""

    module: nn.Linear | nn.Conv2d
    bias: bool
    sums: list[Tensor] = field(default_factory=list)
    positions: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs), the bias counted as one more input."""
        return len(self.module.weight), self.module.weight[0].numel() + self.bias

    def columns(self, a: Tensor) -> Tensor:
        """What the weight matrix multiplies: (row, position, input), with a 1 for the bias."""
        m = self.module
        if isinstance(m, nn.Conv2d):
            assert not isinstance(m.padding, str)
            a = F.unfold(a, m.kernel_size, m.dilation, m.padding, m.stride).transpose(1, 2)
        else:
            a = a.reshape(len(a), -1, a.shape[-1])
        return torch.cat((a, torch.ones_like(a[..., :1])), -1) if self.bias else a

    def slopes(self, g: Tensor) -> Tensor:
        """Slopes of the layer's outputs as (row, position, output)."""
        g = g.flatten(2).transpose(1, 2) if isinstance(self.module, nn.Conv2d) else g
        return g.reshape(len(g), -1, g.shape[-1])


@dataclass
class Block:
    """Posterior of one layer: W + left (grid * Xi) right', and the log determinant of its precision."""

    left: Tensor
    right: Tensor
    grid: Tensor
    log_det: Tensor


class LayerSums(ABC):
    """Sums over rows for the layers of a net that what goes in and the slopes of what comes out suffice for.

    Those are ``nn.Linear`` and ``nn.Conv2d`` (one group, padded with zeros) that are called once in a forward pass,
    with the rows along axis 0, and whose weight and bias act there and nowhere else: the gradients on a few rows tell.

    Parameters
    ----------
    net : in eval mode, at the mode.
    names : of the weights that have a posterior, within ``net``.
    x : a few rows.
    """

    def __init__(self, net: nn.Module, names: Sequence[str], x: Tensor) -> None:
        self.net = net
        self.layers: dict[str, Layer] = {}
        for path, module in net.named_modules():
            weight = f"{path}.weight" if path else "weight"
            if weight not in names or not _has_factors(module):
                continue
            self.layers[weight] = Layer(module, bias_of(weight) in names)
        self._keep_what_is_right(x)

    @property
    def names(self) -> list[str]:
        """Names of the weights and biases of these layers."""
        return [n for w, layer in self.layers.items() for n in ([w, bias_of(w)] if layer.bias else [w])]

    @staticmethod
    @abstractmethod
    def shapes(outputs: int, inputs: int) -> list[tuple[int, int]]:
        """Shapes of the sums of a layer."""

    @staticmethod
    @abstractmethod
    def add_slopes(layer: Layer, a: Tensor, g: Tensor) -> None:
        """Add what one column of R_i gives, from a (row, position, input) and g (row, position, output)."""

    def num_bytes(self) -> int:
        """Bytes that the sums and what is made of them will take."""
        return sum(2 * 8 * rows * columns for x in self.layers.values() for rows, columns in self.shapes(*x.shape))

    def add(self, x: Tensor, roots: Tensor) -> None:
        """Add rows; Lambda_i = R_i R_i'."""
        if not self.layers:
            return
        outputs, captured = self._forward(x)
        columns = {weight: self.layers[weight].columns(a) for weight, (a, _) in captured.items()}
        for weight, a in columns.items():
            layer = self.layers[weight]
            layer.sums = layer.sums or [a.new_zeros(shape, dtype=torch.float64) for shape in self.shapes(*layer.shape)]
            layer.positions += a.shape[0] * a.shape[1]
            self.add_inputs(layer, a)
        inner = [s for _, s in captured.values()]
        for k in range(roots.shape[-1]):
            probe = roots[..., k].reshape(outputs.shape)
            slopes = torch.autograd.grad(outputs, inner, probe, retain_graph=True, materialize_grads=True)
            for (weight, a), slope in zip(columns.items(), slopes, strict=True):
                layer = self.layers[weight]
                self.add_slopes(layer, a, layer.slopes(slope))

    @staticmethod
    def add_inputs(layer: Layer, a: Tensor) -> None:
        """Add what depends on the inputs alone."""

    def _forward(self, x: Tensor) -> tuple[Tensor, Captured]:
        """Outputs of the net, and of each layer called once what went in and what came out."""
        calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
        with ExitStack() as stack, torch.enable_grad():
            for weight, layer in self.layers.items():

                def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor, weight: str = weight) -> Tensor:
                    calls.setdefault(weight, []).extend((a.detach(), output) for a in args)
                    return output.clone()  # what follows may write into it

                stack.callback(layer.module.register_forward_hook(hook).remove)
            outputs: Tensor = self.net(x)
        return outputs, {weight: seen[0] for weight, seen in calls.items() if len(seen) == 1}

    def _keep_what_is_right(self, x: Tensor) -> None:
        """Drop the layers whose gradient is not sum_it g_it a_it': weights shared, or used in another way as well."""
        outputs, captured = self._forward(x)
        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)
        parameters = dict(self.net.named_parameters(remove_duplicate=False))
        right = {}
        for weight, layer in self.layers.items():
            if weight not in captured:
                continue
            a, s = captured[weight]
            wanted = [parameters[weight], *([parameters[bias_of(weight)]] if layer.bias else [])]
            slope, *exact = torch.autograd.grad(outputs, [s, *wanted], probe, retain_graph=True, materialize_grads=True)
            joint = torch.cat([part.reshape(layer.shape[0], -1) for part in exact], 1)
            columns = layer.columns(a) if len(a) == len(x) else None
            if columns is None:
                continue
            rebuilt = torch.einsum("bto,bti->oi", layer.slopes(slope), columns)
            if torch.allclose(rebuilt, joint, rtol=0, atol=1e-3 * float(joint.abs().max())):
                right[weight] = layer
        self.layers = right


class Kronecker(LayerSums):
    """A = sum_it a_it a_it' and G = sum_it g_it g_it' of each layer."""

    @staticmethod
    def shapes(outputs: int, inputs: int) -> list[tuple[int, int]]:
        return [(inputs, inputs), (outputs, outputs)]

    @staticmethod
    def add_inputs(layer: Layer, a: Tensor) -> None:
        flat = a.flatten(0, 1).to(torch.float64)
        layer.sums[0].addmm_(flat.T, flat)

    @staticmethod
    def add_slopes(layer: Layer, a: Tensor, g: Tensor) -> None:
        flat = g.flatten(0, 1).to(torch.float64)
        layer.sums[1].addmm_(flat.T, flat)

    def blocks(self, precisions: dict[str, Tensor]) -> dict[str, Block]:
        """The posterior of each layer under Normal priors of these precisions, one number for each weight tensor.

        With D the prior precision of the columns (the bias may have another one than the weight) and
        B = D^-1/2 A D^-1/2,

            A kron G / positions + D kron I = (D^1/2 kron I) (B kron G / positions + I) (D^1/2 kron I)

        which the eigenvectors of B and G diagonalise: damping by the prior without approximation.
        """
        blocks = {}
        for weight, layer in self.layers.items():
            A, G = layer.sums
            prior = precisions[weight].to(A).expand(len(A)).clone()
            if layer.bias:
                prior[-1] = precisions[bias_of(weight)].to(A)
            scale = prior.rsqrt()
            a_values, a_vectors = torch.linalg.eigh(scale[:, None] * A * scale)
            g_values, g_vectors = torch.linalg.eigh(G)
            product = torch.outer(g_values.clamp_min(0), a_values.clamp_min(0)) / layer.positions
            log_det = product.log1p().sum() + len(G) * prior.log().sum()
            blocks[weight] = Block(g_vectors, scale[:, None] * a_vectors, (product + 1).rsqrt(), log_det)
        return blocks


class Diagonal(LayerSums):
    """sum_i (sum_t g_it a_it')^2 of each layer, (output, input)."""

    @staticmethod
    def shapes(outputs: int, inputs: int) -> list[tuple[int, int]]:
        return [(outputs, inputs)]

    @staticmethod
    def add_slopes(layer: Layer, a: Tensor, g: Tensor) -> None:
        (total,) = layer.sums
        if a.shape[1] == 1:
            total.addmm_(g[:, 0].square().to(total).T, a[:, 0].square().to(total))
            return
        rows = max(1, PIECE_BYTES // (total.numel() * a.element_size()))
        for part_a, part_g in zip(a.split(rows), g.split(rows), strict=True):
            total.add_((part_g.transpose(1, 2) @ part_a).square().sum(0, dtype=total.dtype))

    def parts(self) -> dict[str, Tensor]:
        """The diagonal by the weights' names, in their shapes."""
        parts = {}
        for weight, layer in self.layers.items():
            (total,) = layer.sums
            shape = layer.module.weight.shape
            parts[weight] = total[:, : shape[1:].numel()].reshape(shape)
            if layer.bias:
                parts[bias_of(weight)] = total[:, -1]
        return parts


def _has_factors(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)
