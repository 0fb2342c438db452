"""Minibatches: of tensors in memory, and of a user's own loader."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset, WeightedRandomSampler

from bayesnn.errors import at_least
from bayesnn.rng import generator as seeded
from bayesnn.rng import isolated

Order = Literal["reshuffle", "iid", "sequential"]


class Batches:
    """Minibatches of tensors in memory, whole batches indexed at once.

    Each iteration is one epoch of ``ceil(N / batch_size)`` pairs (x_b, y_b), or of one fewer where a single row would
    be left over: that row joins the minibatch before it, because BatchNorm cannot train on one row ("iid" has no rest).

    Parameters
    ----------
    x : Tensor, shape (N, ...)
    y : Tensor, shape (N, ...)
    batch_size : int, optional
        Rows of a minibatch at most; None is all of them.
    order : {"reshuffle", "iid", "sequential"}
        "reshuffle": a new permutation each epoch, in which every row comes once, in as few minibatches as there must
        be, of one size but for a row. (Full ones with a short rest would be noisier, the rest by far, and in a fixed
        order its rows would weigh more than others.)
        "iid": every minibatch is ``batch_size`` rows drawn with replacement, never short, so that minibatches are
        independent and their gradients too. "sequential": the rows in their order, as views; of the
        same sizes.
    generator : torch.Generator, optional
        Where the randomness comes from: needed for "iid", and for "reshuffle" with more than one minibatch. Its device
        need not be the data's: a CPU generator gives the same minibatches on every device.
    device : torch.device, optional
        Where the minibatches are to be, if not where ``x`` and ``y`` are: each is moved by itself, through pinned
        memory, so that nobody waits for it.

    Raises
    ------
    ValueError
        If ``x`` and ``y`` differ in rows or have none, ``batch_size`` is below 1, ``order`` is unknown, or a generator
        is needed and missing.

    Notes
    -----
    With ``batch_size`` None or at least N, "reshuffle" and "sequential" give the tensors themselves, uncopied.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int | None = None,
        order: Order = "reshuffle",
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
    ) -> None:
        if x.dim() == 0 or y.dim() == 0 or len(x) != len(y) or len(x) == 0:
            raise ValueError(
                f"Batches: expected x and y of one number of rows, at least 1, got {tuple(x.shape)} and "
                f"{tuple(y.shape)}: one target per input"
            )
        if order not in get_args(Order):
            raise ValueError(f"Batches: expected an order among {', '.join(get_args(Order))}; got {order!r}: pass one")
        self.x = x
        self.y = y
        self.num_data = len(x)
        self.batch_size = self.num_data if batch_size is None else at_least("batch_size", batch_size, 1)
        self.order = order
        self.generator = generator
        self.device = x.device if device is None else device
        if generator is None and (order == "iid" or (order == "reshuffle" and len(self) > 1)):
            raise ValueError(
                f"Batches: expected a generator for order {order!r}, got None: pass torch.Generator().manual_seed(0)"
            )

    def __len__(self) -> int:
        return -(-self.num_data // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.in_order:
            yield from self.all_rows()
        else:
            yield from map(self._rows, self.indices())

    @property
    def in_order(self) -> bool:
        """Whether an epoch is the rows as they lie in memory, of which minibatches are views."""
        return self.order == "sequential" or (self.order == "reshuffle" and len(self) == 1)

    def indices(self) -> Iterator[Tensor]:
        """Rows of each minibatch of an epoch; what a new epoch takes from ``generator``."""
        assert self.generator is not None
        if self.order == "iid":
            for _ in range(len(self)):
                yield self._draw_rows()
        else:
            order = torch.randperm(self.num_data, generator=self.generator, device=self.generator.device)
            yield from order.to(self.x.device).split(self._sizes())

    def peek(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk an epoch's minibatches that are the same in every call, and leave ``generator`` alone.

        For passes that are no part of training, such as estimating BatchNorm's statistics anew. The rows come in one
        fixed random order, because rows as they lie in memory may be sorted by class.
        """
        if len(self) == 1:
            yield self._moved(self.x, self.y)
            return
        order = torch.randperm(self.num_data, generator=torch.Generator().manual_seed(0))
        for rows in order.to(self.x.device).split(self._sizes()):
            yield self._rows(rows)

    def all_rows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk every row exactly once, in pieces of about ``batch_size`` rows, in their order, as views."""
        if len(self) == 1:
            yield self._moved(self.x, self.y)
            return
        for x, y in zip(self.x.split(self._sizes()), self.y.split(self._sizes()), strict=True):
            yield self._moved(x, y)

    def _sizes(self) -> list[int]:
        """Rows of each minibatch of an epoch without replacement."""
        size, longer = divmod(self.num_data, len(self))
        return [size + 1] * longer + [size] * (len(self) - longer)

    def _draw_rows(self) -> Tensor:
        assert self.generator is not None
        size = (self.batch_size,)
        return torch.randint(self.num_data, size, generator=self.generator, device=self.generator.device)

    def _rows(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        x, y = self.x, self.y
        if x.device == self.device:
            return x.index_select(0, rows.to(x.device)), y.index_select(0, rows.to(y.device))
        pinned = [v.new_empty((len(rows), *v.shape[1:]), pin_memory=v.device.type == "cpu") for v in (x, y)]
        for v, out in zip((x, y), pinned, strict=True):
            torch.index_select(v, 0, rows.to(v.device), out=out)
        return self._moved(*pinned)

    def _moved(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if x.device == self.device:
            return x, y
        x, y = (v.pin_memory() if v.device.type == "cpu" and not v.is_pinned() else v for v in (x, y))
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)


class Loader:
    """A user's ``DataLoader``, or any iterable of (x, y), with what training needs to know of it.

    Parameters
    ----------
    batches : iterable of (Tensor, Tensor)
        Minibatches (x_b, y_b), each of at least one row.
    num_data : int, optional
        N, the number of training rows, by which the likelihood of a minibatch is scaled. By default
        ``len(batches.dataset)``.
    steps_per_epoch : int, optional
        Length of an epoch. Without it an epoch is one pass over ``batches``. With it an epoch takes that many
        minibatches from where the epoch before stopped, and starts ``batches`` anew when it is used up; so a stream
        without an end works.

    Raises
    ------
    ValueError
        If ``num_data`` is not given and cannot be known: no dataset with a length, or a sampler that visits another
        number of rows than the dataset has, or rows unequally often; if a number is below 1; or if an iterator that
        can be walked only once comes without ``steps_per_epoch``.
    TypeError
        If ``batches`` is a dataset, whose items are single rows, and not a loader over one.
    """

    def __init__(
        self,
        batches: Iterable[Any] | Dataset[Any],
        num_data: int | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        for label, value in (("num_data", num_data), ("steps_per_epoch", steps_per_epoch)):
            if value is not None:
                at_least(label, value, 1)
        if isinstance(batches, Dataset):
            raise TypeError(
                f"Loader: expected minibatches, got a {type(batches).__name__}, a dataset: wrap it in "
                "DataLoader(dataset, batch_size=64), or batch_size=None if its items are minibatches"
            )
        if steps_per_epoch is None and isinstance(batches, Iterator):
            raise ValueError(
                f"Loader: expected an iterable that starts anew each epoch, got a {type(batches).__name__}, which is "
                "used up after one: pass a list or DataLoader, or steps_per_epoch"
            )
        self.batches = batches
        self.num_data = _count_rows(batches) if num_data is None else num_data
        self.steps_per_epoch = steps_per_epoch
        self._stream: Iterator[Any] | None = None
        self._ahead: deque[Any] = deque()
        self._batch_rows: int | None = None

    def __len__(self) -> int:
        """Return the minibatches of an epoch.

        Where neither ``steps_per_epoch`` nor ``batches`` tells, it is what ``num_data`` rows would fill at
        :attr:`batch_rows` each. That is for planning only: an epoch is still one whole pass over ``batches``.
        """
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch
        size = _length(self.batches)
        return -(-self.num_data // self.batch_rows) if size is None else size

    @property
    def batch_rows(self) -> int:
        """Rows of the first minibatch that :meth:`peek` gives, which it is asked for once."""
        if self._batch_rows is None:
            with isolated(seeded(0)):  # a DataLoader takes a seed from torch's global generator
                return len(next(self.peek())[0])
        return self._batch_rows

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk one epoch; ValueError if there are no minibatches (left), TypeError if one is not (x, y)."""
        if self.steps_per_epoch is None:
            yield from self._pass()
            return
        for step in range(self.steps_per_epoch):
            yield _pair(self._next(step))

    def peek(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Walk minibatches aside from the epochs, which they neither shorten nor reorder.

        An iterable that starts anew gives one pass from its beginning: a shuffling one in the order that its generator
        gives it then. An iterator that can be walked only once gives what comes next in it; whatever was taken from it
        here is kept, and the epochs get it first, in its order. So take no more of an endless one than memory holds.

        Raises
        ------
        ValueError
            If there are no minibatches, or the iterator is used up.
        """
        for x, y in self._coming() if isinstance(self.batches, Iterator) else self._pass():
            self._batch_rows = self._batch_rows or len(x)
            yield x, y

    def _coming(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from map(_pair, self._ahead.copy())
        for batch in self.batches:
            self._ahead.append(batch)
            yield _pair(batch)
        if not self._ahead:
            raise ValueError(
                "Loader: expected a minibatch to peek at, got a used-up iterator: pass an iterable that starts anew, "
                "such as a DataLoader"
            )

    def _pass(self) -> Iterator[tuple[Tensor, Tensor]]:
        empty = True
        for batch in self.batches:
            empty = False
            yield _pair(batch)
        if empty:
            raise ValueError("Loader: expected at least one minibatch an epoch, got none: check drop_last and size")

    def _next(self, step: int) -> Any:
        if self._ahead:
            return self._ahead.popleft()
        if self._stream is not None:
            for batch in self._stream:
                return batch
        self._stream = iter(self.batches)
        for batch in self._stream:
            return batch
        raise ValueError(
            f"Loader: expected {self.steps_per_epoch} minibatches an epoch, got {step} from a used-up iterator: "
            "lower steps_per_epoch or pass an iterable that starts anew"
        )


def _length(values: Any) -> int | None:
    try:
        return len(values)
    except TypeError:
        return None


def _count_rows(batches: Iterable[Any]) -> int:
    size = _length(getattr(batches, "dataset", None))
    if size is None or size < 1:
        raise ValueError(
            f"Loader: expected a dataset with a length, got none in {type(batches).__name__}: "
            "pass num_data, the number of training rows"
        )
    # Of a DataLoader that was given a batch_sampler, ``sampler`` is one that is never asked.
    sampler = getattr(getattr(batches, "batch_sampler", None), "sampler", getattr(batches, "sampler", None))
    if isinstance(sampler, WeightedRandomSampler):
        raise ValueError(
            "Loader: expected rows that come equally often, got a WeightedRandomSampler, whose posterior would be that "
            "of other data: pass data in memory and fit(..., sampling=), or num_data if it is meant"
        )
    visited = _length(sampler)
    # A sampler over a part of the rows, or one rank's share of them, would make the likelihood's scale silently wrong.
    if visited is not None and visited != size:
        raise ValueError(
            f"Loader: expected a sampler over all {size} rows of the dataset, got one that visits {visited}: "
            "pass num_data, the number of training rows"
        )
    return size


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(v, Tensor) for v in batch):
        x, y = batch
        if x.dim() == 0 or y.dim() == 0 or len(x) != len(y) or len(x) == 0:
            raise ValueError(
                f"Loader: expected minibatches of as many targets as inputs, got {tuple(x.shape)} and "
                f"{tuple(y.shape)}: collect single rows with DataLoader(dataset, batch_size=64)"
            )
        return x, y
    got = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise TypeError(f"Loader: expected minibatches (x, y) of two tensors, got {got}: map them with a collate_fn")
