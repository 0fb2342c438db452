"""R-hat, effective sample size and Monte-Carlo error of draws, for a million quantities at once.

The same numbers as ArviZ 0.23 (`az.rhat(method="rank")`, `az.ess`, `az.mcse`), vectorised over quantities. The
quantities may be weights, but what should have converged is the function: outputs or log-probabilities on some inputs.

References
----------
Vehtari, Gelman, Simpson, Carpenter & Bürkner (2021), Rank-normalization, folding, and localization: an improved R-hat
for assessing convergence of MCMC, Bayesian Analysis 16(2).
Geyer (1992), Practical Markov chain Monte Carlo, Statistical Science 7(4).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["ess", "mcse_mean", "rhat"]

Array: TypeAlias = NDArray[np.float64]

# Numbers worked on at once: 8 MB in float64, and about ten times that with the temporaries, however many quantities.
_BLOCK = 2**20


def rhat(values: torch.Tensor | NDArray[Any]) -> Array:
    """Rank-normalised split R-hat: the larger one of the bulk's and of the folded draws'.

    Each chain is cut in two (the middle one of an odd number of draws is left out) and the draws x become

        z = Phi^-1((rank(x) - 3/8) / (S + 1/4)),    R-hat = sqrt((B / W + n - 1) / n),

    with S draws in all, n to a half chain, B / n the variance of the half chains' means of z and W the mean of their
    variances. The folded one takes |x - median(x)| for x: it sees chains that differ in scale.

    Parameters
    ----------
    values : Tensor or ndarray, (chain, draw, ...)

    Returns
    -------
    ndarray, (...), float64
        About 1 for chains that agree; above 1.01 (Vehtari et al. 2021) more draws are needed. nan for a constant
        quantity, for one with nan or inf among its draws, and, with a warning, for all of them when there is a single
        chain or fewer than 4 draws to a chain.

    Raises
    ------
    ValueError
        If `values` has no chain and draw axes, or no chains.

    References
    ----------
    Vehtari et al. (2021): rank normalisation and folding, on split R-hat.
    """
    array = _as_array(values)
    if array.shape[0] == 1:
        return _undefined(array, "R-hat compares chains and needs at least 2; got 1: it is nan, fit with chains=4")
    if array.shape[1] < 4:
        return _undefined(array, f"R-hat needs at least 4 draws to a chain; got {array.shape[1]}: it is nan, draw more")
    return _in_blocks(array, _rhat_block)


def ess(values: torch.Tensor | NDArray[Any], kind: Literal["bulk", "tail", "mean"] = "bulk") -> Array:
    """Effective sample size: how many independent draws would be worth as much.

    With S draws in all and rho_t the autocorrelation at lag t, averaged over the half chains,

        ESS = S / tau,    tau = -1 + 2 sum_{k < j} P_k + rho_2j,    P_k = rho_2k + rho_2k+1,

    where P_j is the first pair that is not positive and the P_k are made to decrease (Geyer's initial monotone
    sequence). tau is at least 1 / log10(S), which bounds the ESS of antithetic chains.

    Parameters
    ----------
    values : Tensor or ndarray, (chain, draw, ...)
    kind : {"bulk", "tail", "mean"}
        "bulk": of the rank-normalised draws. "tail": the smaller of those of the indicators of the 5 % and 95 %
        quantiles. "mean": of the draws as they are, which is what the Monte-Carlo error of their mean needs.

    Returns
    -------
    ndarray, (...), float64
        The number of draws, S, for a constant quantity (as in ArviZ); nan for one with nan or inf among its draws,
        and, with a warning, for all of them with fewer than 4 draws to a chain.

    Raises
    ------
    ValueError
        If `values` has no chain and draw axes, no chains, or `kind` is unknown.

    References
    ----------
    Vehtari et al. (2021): bulk-ESS and tail-ESS; Geyer (1992): the initial monotone sequence.
    """
    kinds: dict[str, Callable[[Array], Array]] = {
        "bulk": lambda block: _ess_block(_rank_normalise(_split(block))),
        "tail": _ess_tail,
        "mean": lambda block: _ess_block(_split(block)),
    }
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}; got {kind!r}: 'bulk' is usual")
    array = _as_array(values)
    if array.shape[1] < 4:
        return _undefined(array, f"ESS needs at least 4 draws to a chain; got {array.shape[1]}: it is nan, draw more")
    return _in_blocks(array, kinds[kind])


def mcse_mean(values: torch.Tensor | NDArray[Any]) -> Array:
    """Monte-Carlo standard error of the mean over all draws, sd(x) / sqrt(ESS_mean(x)).

    Parameters
    ----------
    values : Tensor or ndarray, (chain, draw, ...)

    Returns
    -------
    ndarray, (...), float64
        In the units of `values`. 0 for a constant quantity; nan for one with nan or inf among its draws, and, with a
        warning, for all of them with fewer than 4 draws to a chain.

    Raises
    ------
    ValueError
        If `values` has no chain and draw axes, or no chains.

    References
    ----------
    Vehtari et al. (2021): Monte Carlo error of the posterior mean.
    """
    array = _as_array(values)
    if array.shape[1] < 4:
        return _undefined(array, f"MCSE needs at least 4 draws to a chain; got {array.shape[1]}: it is nan, draw more")

    def block_mcse(block: Array) -> Array:
        sd: Array = block.std(axis=(1, 2), ddof=1)
        return np.where(_constant(block), 0.0, sd / np.sqrt(_ess_block(_split(block))))

    return _in_blocks(array, block_mcse)


def _as_array(values: torch.Tensor | NDArray[Any]) -> NDArray[Any]:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        # numpy has no bfloat16
        values = values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    array = np.asarray(values)
    if array.ndim < 2 or array.shape[0] == 0:
        raise ValueError(
            f"values must be (chain, draw, ...); got {array.shape}: add the missing axes with values[None]"
        )
    return array


def _undefined(array: NDArray[Any], why: str) -> Array:
    warnings.warn(why, UserWarning, stacklevel=3)
    return np.full(array.shape[2:], np.nan)


def _in_blocks(array: NDArray[Any], statistic: Callable[[Array], Array]) -> Array:
    """`statistic` of (quantity, chain, draw) in float64, a bounded number of quantities at a time.

    As many blocks at once as torch has threads: numpy sorts and counts outside of Python's lock.
    """
    chains, draws = array.shape[:2]
    quantities = array.reshape(chains, draws, -1)
    result = np.full(quantities.shape[2], np.nan)
    step = max(1, _BLOCK // (chains * draws))

    def work(start: int) -> None:
        block = np.ascontiguousarray(quantities[..., start : start + step].transpose(2, 0, 1), dtype=np.float64)
        finite = np.isfinite(block).all(axis=(1, 2))
        if not finite.any():
            return
        # 0 / 0 is how a quantity without variance becomes nan
        with np.errstate(divide="ignore", invalid="ignore"):
            result[start : start + step][finite] = statistic(block[finite])

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(work, range(0, len(result), step)))
    return result.reshape(array.shape[2:])


def _split(block: Array) -> Array:
    """(quantity, chain, draw) -> (quantity, 2 chain, draw // 2); the middle one of an odd number is left out."""
    half = block.shape[2] // 2
    return np.concatenate([block[:, :, :half], block[:, :, -half:]], axis=1)


def _constant(block: Array) -> NDArray[np.bool_]:
    constant: NDArray[np.bool_] = block.max(axis=(1, 2)) == block.min(axis=(1, 2))
    return constant


def _rank_normalise(block: Array) -> Array:
    from scipy import special

    quantities, chains, draws = block.shape
    size = chains * draws
    flat = block.reshape(quantities, size)
    order = np.argsort(flat, axis=1)
    ordered = np.take_along_axis(flat, order, axis=1)
    # Of 2 rank, 2 to 2 S: ties share the average of their ranks, which may be half a number.
    scores = special.ndtri((np.arange(2, 2 * size + 1) / 2 - 3 / 8) / (size + 1 / 4))
    normal = np.tile(scores[::2], (quantities, 1))  # without ties the k-th from 0 has rank k + 1
    # Ties are runs of places that equal the one before. Folding always makes one, of the two draws around the median.
    tied = np.zeros((quantities, size + 1), dtype=np.int8)
    tied[:, 1:-1] = ordered[:, 1:] == ordered[:, :-1]
    turns = np.diff(tied, axis=1)  # 1 where a run begins, -1 at its last place
    row, first = np.nonzero(turns == 1)
    last = np.nonzero(turns == -1)[1]
    length = last - first + 1
    # The places of all runs, one run after another: 0, 1, 2, ... counted through, and in each run moved to begin at its
    # own first place instead of at the number of places in the runs before it.
    place = np.arange(length.sum()) + np.repeat(first - np.cumsum(length) + length, length)
    normal[np.repeat(row, length), place] = np.repeat(scores[first + last], length)
    normalised = np.empty_like(flat)
    np.put_along_axis(normalised, order, normal, axis=1)
    return normalised.reshape(block.shape)


def _rhat_block(block: Array) -> Array:
    split = _split(block)
    median = np.median(split.reshape(len(split), -1), axis=1)[:, None, None]
    # Folding can make a quantity constant (one that is +-1): the bulk's R-hat is then the answer, hence fmax.
    return np.fmax(_rhat_plain(_rank_normalise(split)), _rhat_plain(_rank_normalise(np.abs(split - median))))


def _rhat_plain(block: Array) -> Array:
    draws = block.shape[2]
    between_over_n = block.mean(axis=2).var(axis=1, ddof=1)
    within = block.var(axis=2, ddof=1).mean(axis=1)
    value = np.sqrt((draws * between_over_n / within + draws - 1) / draws)
    # Rounding would leave a variance of 1e-33 in a constant, and an arbitrary ratio of two of them.
    return np.where(_constant(block), np.nan, value)


def _ess_tail(block: Array) -> Array:
    ordered = np.sort(block.reshape(len(block), -1), axis=1)
    size = ordered.shape[1]
    sizes = []
    for p in (0.05, 0.95):
        # R's type 7 in the operations of scipy's mquantiles, which ArviZ calls: where it falls on a draw, a rounding
        # error the other way would turn the indicator of that draw.
        position = size * p + (1.0 - p)
        below = int(np.clip(np.floor(position), 1, size - 1))
        share = float(np.clip(position - below, 0, 1))
        quantile = (1.0 - share) * ordered[:, below - 1] + share * ordered[:, below]
        sizes.append(_ess_block(_split((block <= quantile[:, None, None]).astype(np.float64))))
    return np.minimum(sizes[0], sizes[1])


def _ess_block(block: Array) -> Array:
    """ESS of (quantity, half chain, draw), already split."""
    quantities, chains, draws = block.shape
    size = chains * draws
    covariance = _autocovariance(block).mean(axis=1)
    within = covariance[:, 0] * draws / (draws - 1)
    var_plus = covariance[:, 0] + block.mean(axis=2).var(axis=1, ddof=1)
    rho = 1.0 - (within[:, None] - covariance) / var_plus[:, None]
    rho[:, 0] = 1.0

    # Pairs (rho_2k, rho_2k+1), up to the last one that ArviZ looks at.
    last = max(0, (draws - 3) // 2)
    even = rho[:, 0 : 2 * last + 1 : 2]
    pairs = even + rho[:, 1 : 2 * last + 2 : 2]
    ended = pairs <= 0
    stop = np.where(ended.any(axis=1), ended.argmax(axis=1), last)
    before = np.arange(last + 1) < stop[:, None]
    monotone = np.minimum.accumulate(pairs, axis=1)
    row = np.arange(quantities)
    final = even[row, stop]
    # A negative rho_2j counts only when the chain was too short for its pair to turn negative.
    final = np.where(pairs[row, stop] < 0, np.maximum(final, 0.0), final)
    tau = -1.0 + 2.0 * np.where(before, monotone, 0.0).sum(axis=1) + final
    return np.where(_constant(block), float(size), size / np.maximum(tau, 1.0 / np.log10(size)))


def _autocovariance(block: Array) -> Array:
    """Biased (divided by n) autocovariance of each chain at lags 0..n - 1, by FFT."""
    from scipy import fft

    draws = block.shape[2]
    length = fft.next_fast_len(2 * draws, real=True)
    spectrum = fft.rfft(block - block.mean(axis=2, keepdims=True), n=length, axis=2)
    covariance: Array = fft.irfft(np.square(np.abs(spectrum)), n=length, axis=2)[..., :draws] / draws
    return covariance
