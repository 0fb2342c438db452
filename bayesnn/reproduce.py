"""The call, and the command, that make a comparison again: what a report says of itself."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

_OPTIONS = (
    "net",
    "methods",
    "epochs",
    "batch_size",
    "budget",
    "seeds",
    "shifts",
    "device",
)  # that the command has as well


def python_call(arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """``bnn.compare(...)`` as source text: the arguments that differ from their defaults.

    What has no source text of its own stands in angle brackets: data in memory, functions, modules.

    Parameters
    ----------
    arguments : of :func:`bayesnn.compare`, by name, ``data`` among them.
    defaults : of those that have one.
    """
    changed = [f"{name}={_source(name, value)}" for name, value in _changed(arguments, defaults).items()]
    parts = [_source("data", arguments["data"]), *changed]
    call = f"bnn.compare({', '.join(parts)})"
    if len(call) > 100:
        call = "bnn.compare(\n" + "".join(f"    {part},\n" for part in parts) + ")"
    return f"import bayesnn as bnn\n\n{call}"


def command_line(arguments: Mapping[str, Any], defaults: Mapping[str, Any], threads: int) -> str | None:
    """The ``bayesnn compare`` command that does the same on as many threads, or None where it has no such option."""
    changed = _changed(arguments, defaults)
    lists = {name: [value] if isinstance(value, (str, int)) else value for name, value in changed.items()}
    if not isinstance(arguments["data"], str) or not lists.keys() <= set(_OPTIONS):
        return None
    if not all(isinstance(one, list | tuple) and all(isinstance(v, str | int) for v in one) for one in lists.values()):
        return None
    words = ["bayesnn", "compare", arguments["data"]]
    for name, values in lists.items():
        option = f"--{name.replace('_', '-')}"
        if name == "shifts":
            words.append(option)
        elif name == "methods":
            words += [option, ",".join(map(str, values))]
        else:
            words += [word for value in values for word in (option, str(value))]
    return f"OMP_NUM_THREADS={threads} {shlex.join(words)}"


def _changed(arguments: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in arguments.items() if name in defaults and not _same(one, defaults[name])}


def _same(value: Any, default: Any) -> bool:
    """Whether an argument is its default; a sequence of the same is. Tensors have no such truth, and are not."""
    if isinstance(value, list | tuple) and isinstance(default, tuple):
        return tuple(value) == default
    return value is default or (isinstance(value, str | int | float) and bool(value == default))


def _source(name: str, value: Any) -> str:
    from bayesnn.data import Data
    from bayesnn.likelihoods import Likelihood
    from bayesnn.methods import Method

    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_source(name, one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        inner = ", ".join(_source(name, one) for one in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, Method):
        fields = [f for f in dataclasses.fields(value) if f.init]  # type: ignore[arg-type]
        given = {f.name: getattr(value, f.name) for f in fields if not _same(getattr(value, f.name), f.default)}
        return f"bnn.{type(value).__name__}({', '.join(f'{key}={_source(key, one)}' for key, one in given.items())})"
    if isinstance(value, Likelihood):
        return f"bnn.likelihoods.{value!r}"
    if name == "prior":
        return f"bnn.priors.{value!r}" if type(value).__module__.startswith("bayesnn.") else _own(value)
    if value is None or isinstance(value, str | bool | int | float):
        return repr(value)
    if isinstance(value, Data):
        return f"<{value!r}>"
    return _own(value)


def _own(value: Any) -> str:
    """What the reader has to put in."""
    return f"<your {getattr(value, '__name__', type(value).__name__).strip('<>')}>"
