"""A progress bar with the present loss, and the expected cost of a long run before it is spent."""

from __future__ import annotations

import time
from typing import Any

from bayesnn.methods import Plan

LONG_SECONDS = 30.0
TIMED_SECONDS = 2.0


def format_seconds(seconds: float) -> str:
    """``75 s`` -> ``1 min 15 s``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def format_bytes(count: float) -> str:
    """``2_500_000`` -> ``2.5 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


class Progress:
    """A bar over the steps of all chains (tqdm, on standard error). Off, it does nothing."""

    def __init__(self, enabled: bool, plan: Plan, result_bytes: int) -> None:
        self._plan, self._bytes, self._bar = plan, result_bytes, None
        self._steps, self._began, self._timing = 0, time.perf_counter(), enabled
        self._warm = False
        self._shown: dict[str, str] = {}
        if enabled:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=plan.chains * plan.steps, unit="step", mininterval=0.2, dynamic_ncols=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def step(self, loss: float, chains: int = 1) -> None:
        """``chains`` chains took a step; ``loss`` is shown whenever the bar is drawn anew, a few times a second."""
        if self._bar is None:
            return
        if self._timing:
            self._time(chains)
        if self._bar.update(chains):
            self._shown["loss"] = f"{loss:.4g}"
            self._bar.set_postfix(self._shown)

    def _time(self, steps: int) -> None:
        """The forecast: by time, because a run may be of few long steps. The first one warms up, unless it is long."""
        now = time.perf_counter()
        self._steps += steps
        if now - self._began >= TIMED_SECONDS:
            self._timing = False
            self._announce((now - self._began) / self._steps)
        elif not self._warm:
            self._warm, self._steps, self._began = True, 0, now

    def _announce(self, seconds_a_step: float) -> None:
        seconds = seconds_a_step * self._plan.chains * self._plan.steps
        if self._bar is not None and seconds > LONG_SECONDS:
            self._bar.write(
                f"bayesnn: about {format_seconds(seconds)} for {self._plan.chains} chains x {self._plan.epochs} epochs "
                f"x {self._plan.steps_per_epoch} steps; the result takes {format_bytes(self._bytes)} of memory",
                file=self._bar.fp,
            )

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch was recorded: show its numbers."""
        if self._bar is not None:
            names = ("loss", "val_nll", "val_accuracy", "val_rmse")
            self._shown = {name: f"{row[name]:.4g}" for name in names if name in row}
            where = f"chain {row['chain'] + 1}/{self._plan.chains} epoch {row['epoch'] + 1}"
            self._bar.set_description(where, refresh=False)
            self._bar.set_postfix(self._shown, refresh=False)
