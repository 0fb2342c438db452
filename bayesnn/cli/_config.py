"""``--config FILE.toml``: the flags of a command, written down."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import typer

from bayesnn.errors import unknown


def read_config(ctx: typer.Context, path: Path | None) -> None:
    """Take the values of a TOML file for the defaults of the command that is being called.

    Keys are the names of flags without the dashes in front (``batch-size = 32``, ``no-progress = true``), and those of
    arguments (``data = "moons"``). A list is for a flag that may be given several times, or that takes names with
    commas between. Values are read as on the command line: what is refused there is refused here.

    Raises
    ------
    typer.BadParameter
        If the file cannot be read, or a key is no flag of this command.
    """
    if path is None:
        return
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise typer.BadParameter(f"Expected a file, got {path}: {error.strerror}.") from error
    except ValueError as error:  # no TOML, or no UTF-8
        raise typer.BadParameter(f"Expected TOML in {path}, got none: {error}") from error
    parameters, values = _by_name(ctx.command), {}
    for key, value in found.items():
        name = key.replace("_", "-")
        if name not in parameters:
            raise typer.BadParameter(f"{path}: {unknown('key', key, parameters)}")
        parameter, negated = parameters[name]
        values[parameter.name] = _as_typed(f"{path}: {key}", value, parameter, negated)
    ctx.default_map = {**(ctx.default_map or {}), **values}


def _by_name(command: Any) -> dict[str, tuple[Any, bool]]:
    """Flags and arguments of ``command`` by name, each with whether the name stands for its opposite."""
    found: dict[str, tuple[Any, bool]] = {}
    for parameter in command.params:
        if parameter.name != "config":
            found |= {name.lstrip("-").replace("_", "-"): (parameter, False) for name in parameter.opts}
            found |= {name.lstrip("-").replace("_", "-"): (parameter, True) for name in parameter.secondary_opts}
    return found


def _as_typed(where: str, value: Any, parameter: Any, negated: bool) -> Any:
    """``value`` as it would be on the command line, a string, so that the same is refused."""
    if isinstance(value, dict):
        raise typer.BadParameter(f"{where}: Expected a value, got a table: write the flags at the top level.")
    if getattr(parameter, "is_flag", False):
        if not isinstance(value, bool):
            raise typer.BadParameter(f"{where}: Expected true or false, got {value!r}.")
        return value is not negated
    items = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return items if getattr(parameter, "multiple", False) else ",".join(items)
