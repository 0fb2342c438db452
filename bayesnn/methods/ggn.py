"""The generalised Gauss-Newton matrix of a net: sum_i J_i' Lambda_i J_i, dense or its diagonal.

J_i = d f(x_i, w) / d w is (output, weight), and Lambda_i (output, output) is the curvature of -log p(y_i | f_i) in the
net's outputs. Rows are taken in pieces, so that the Jacobians in memory stay below JACOBIAN_BYTES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from bayesnn import likelihoods
from bayesnn.likelihoods import Likelihood

JACOBIAN_BYTES = 128 * 2**20


def output_curvature(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> Tensor:
    """Lambda of each row, (batch, output, output).

    The Fisher information of the targets' distribution in the outputs, E_y[grad log p grad log p']. Where the outputs
    are natural parameters (Categorical, Bernoulli, Poisson, and Normal and LogNormal at a given scale) that is
    -grad^2 log p(y | f) itself, for every y. Elsewhere the second derivative at the observed y is of no use: that of
    Laplace noise is 0, and those of Student's t and of a Normal whose scale is an output are negative for some y.
    Their Fisher information is

        Laplace(f, b): 1 / b^2,   t(df, f, s): (df + 1) / ((df + 3) s^2),   Normal(f_1, s(f_2)): 1 / s^2, 2 (s' / s)^2

    A user's own likelihood has -grad^2 log p(y | f) at the observed y.
    """
    outputs = outputs.detach()
    fisher = _FISHER.get(type(likelihood))
    if fisher is not None:
        return torch.diag_embed(fisher(likelihood, outputs).reshape(len(outputs), -1))
    with torch.enable_grad():
        outputs.requires_grad_()
        (slope,) = torch.autograd.grad(likelihood.log_prob(outputs, y).sum(), outputs, create_graph=True)
        parts = []
        for column in slope.reshape(len(outputs), -1).unbind(1):
            (part,) = torch.autograd.grad(column.sum(), outputs, retain_graph=True, materialize_grads=True)
            parts.append(-part.reshape(len(outputs), -1))
    return torch.stack(parts, 1).detach()


def _laplace(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    return likelihood.params(outputs)["scale"].detach().pow(-2)


def _student_t(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    assert isinstance(likelihood, likelihoods.StudentT)
    share: float = (likelihood.df + 1) / (likelihood.df + 3)
    return likelihood.params(outputs)["scale"].detach().pow(-2) * share


def _heteroscedastic(likelihood: Likelihood, outputs: Tensor) -> Tensor:
    _, raw = outputs.chunk(2, dim=-1)
    scale = likelihood.params(outputs)["scale"].reshape(raw.shape)
    return torch.cat((scale.pow(-2), 2 * (raw.sigmoid() / scale).square()), -1)


_FISHER: dict[type[Likelihood], Callable[[Likelihood, Tensor], Tensor]] = {
    likelihoods.Laplace: _laplace,
    likelihoods.StudentT: _student_t,
    likelihoods.HeteroscedasticNormal: _heteroscedastic,
}


def curvature_root(likelihood: Likelihood, outputs: Tensor, y: Tensor) -> Tensor:
    """R with R R' = Lambda of each row, (batch, output, output).

    Of a softmax with probabilities p, Lambda = diag(p) - p p' and R = diag(s) (I - s s') with s = sqrt(p): s s' is a
    projection, since |s| = 1. Of labels of which a share e is wrong, q = (1 - e) p + e / K, the Fisher information has
    R = (1 - e) (diag(p) - p p') diag(q)^(-1/2). Class weights multiply Lambda by that of the row. Elsewhere R
    comes from the eigenvectors; eigenvalues that rounding made negative are 0.

    Raises
    ------
    ValueError : Lambda is not positive semidefinite: a user's own likelihood.
    """
    if type(likelihood) in (likelihoods.Categorical, likelihoods.NoisyCategorical):
        assert isinstance(likelihood, likelihoods.Categorical)
        s = (0.5 * outputs.detach().log_softmax(-1)).exp()
        root = torch.diag_embed(s) - s.square().unsqueeze(-1) * s.unsqueeze(-2)
        if isinstance(likelihood, likelihoods.NoisyCategorical):
            observed = likelihood.params(outputs.detach())["logits"]
            root = (1 - likelihood.noise) * root * (s / (0.5 * observed).exp()).unsqueeze(-2)
        weights = likelihood.row_weights(y)
        return root if weights is None else root * weights.sqrt()[:, None, None]
    curvature = output_curvature(likelihood, outputs, y)
    values = curvature.diagonal(dim1=-2, dim2=-1)
    vectors: Tensor | None = None
    if not torch.equal(curvature, torch.diag_embed(values)):  # several targets, each with its outputs, are diagonal
        values, vectors = torch.linalg.eigh(curvature)
    if values.min() < -1e-4 * curvature.abs().max():
        raise ValueError(
            "Expected a likelihood that is log-concave in the net's outputs, got one with curvature "
            f"{float(values.min()):.3g} there: use one of bayesnn.likelihoods."
        )
    roots = values.clamp_min(0).sqrt()
    return torch.diag_embed(roots) if vectors is None else vectors * roots.unsqueeze(-2)


def jacobians(net: nn.Module, names: Sequence[str], x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, J) of pieces of ``x``; J is (row, output, weight), the weights of ``names`` in their order.

    Each row goes through the net on its own: nothing in a forward pass may look at other rows.
    """
    parameters = dict(net.named_parameters())
    weights = {name: parameters[name].detach() for name in names}

    def outputs(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        out: Tensor = functional_call(net, weights, (row.unsqueeze(0),))
        return out.reshape(-1)

    with torch.no_grad():
        width = outputs(weights, x[0]).numel()
        each = 2 * width * sum(w.nbytes for w in weights.values())  # twice: the parts and their concatenation
        size = max(1, JACOBIAN_BYTES // max(each, 1))
        for start in range(0, len(x), size):
            rows = slice(start, min(start + size, len(x)))
            parts = vmap(jacrev(outputs), in_dims=(None, 0))(weights, x[rows])
            yield rows, torch.cat([parts[name].flatten(2) for name in names], 2)


def dense(net: nn.Module, names: Sequence[str], x: Tensor, roots: Tensor, out: Tensor) -> None:
    """Add sum_i J_i' Lambda_i J_i of the rows to ``out``, (weight, weight) in float64; Lambda_i = R_i R_i'."""
    for rows, jacobian in jacobians(net, names, x):
        rooted = torch.einsum("bcr,bcp->brp", roots[rows], jacobian).flatten(0, 1).to(out)
        out.addmm_(rooted.T, rooted)


def diagonal(net: nn.Module, names: Sequence[str], x: Tensor, roots: Tensor, out: Tensor) -> None:
    """Add the diagonal of the rows' sum_i J_i' Lambda_i J_i to ``out``, (weight,) in float64."""
    for rows, jacobian in jacobians(net, names, x):
        rooted = torch.einsum("bcr,bcp->brp", roots[rows], jacobian)
        out.add_(rooted.square().sum((0, 1), dtype=out.dtype))


def scalar_curvature(log_prob: Tensor, parameter: Tensor) -> Tensor:
    """-d^2 log p / d theta^2 of each element of ``parameter``, in its shape: the diagonal of the Hessian."""
    (slope,) = torch.autograd.grad(log_prob, parameter, create_graph=True)
    values = [
        torch.autograd.grad(element, parameter, retain_graph=True, materialize_grads=True)[0].flatten()[k]
        for k, element in enumerate(slope.flatten())
    ]
    return -torch.stack(values).reshape(parameter.shape).detach()
