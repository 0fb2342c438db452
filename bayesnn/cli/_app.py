"""What all commands share: the application, errors of one line, and examples, exit codes and --config in each."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from bayesnn.cli._config import read_config
from bayesnn.errors import DivergedError

F = TypeVar("F", bound=Callable[..., Any])

# ClickException, which lies elsewhere in each generation of typer.
_UsageError: type[Any] = typer.BadParameter.__mro__[2]
INTERRUPTED = 130
CODES = {0: "done", 2: "bad input, or a fit that failed: one line on standard error says why", INTERRUPTED: "Ctrl-C"}
CONFIG = typer.Option(
    help="TOML file with the same names as the flags; flags on the command line win.",
    is_eager=True,
    callback=read_config,
    metavar="FILE",
)


class OneLineGroup(TyperGroup):
    """Says in one line what is wrong with a command line, as with everything else."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except typer.Abort:
            if not standalone_mode:
                raise
            code = INTERRUPTED
        except _UsageError as error:
            if not standalone_mode:
                raise
            if type(error).__name__ == "NoArgsIsHelpError":
                error.show()
            else:
                context = getattr(error, "ctx", None)
                see = f": see `{context.command_path} --help`" if context is not None else ""
                print("error:", " ".join(error.format_message().split()).rstrip(".") + f"{see}.", file=sys.stderr)
            code = 2
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=OneLineGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="`bayesnn COMMAND --help` has examples, and what the exit codes mean.",
)


def command(group: typer.Typer, *examples: str, name: str | None = None, verdict: str = "") -> Callable[[F], F]:
    """Make a function a command: with ``--config``, and with examples and exit codes at the end of its ``--help``.

    Parameters
    ----------
    group : the application, or a part of it.
    examples : command lines.
    name : of the command; by default the function's.
    verdict : what exit code 1 means, where the command has it.
    """
    codes = {**CODES, 1: verdict} if verdict else CODES
    lines = "\n".join(f"  {code:<5}{meaning}" for code, meaning in sorted(codes.items()))
    # "\b" keeps the lines of the paragraph that it begins.
    epilog = "\b\nExamples:\n" + "\n".join(f"  {one}" for one in examples) + f"\n\n\b\nExit codes:\n{lines}"

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def run(*args: Any, config: Any = None, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        config = inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, CONFIG]
        )
        signature = inspect.signature(function, eval_str=True)
        signature = signature.replace(parameters=[*signature.parameters.values(), config])
        run.__signature__ = signature  # type: ignore[attr-defined]
        run.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
        group.command(name, epilog=epilog)(run)
        return function

    return decorate


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors of the user, and warnings, are one line on standard error; a traceback is for faults of the library."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        try:
            yield
        except BrokenPipeError:  # who reads the output has read enough
            raise
        except (ValueError, TypeError, OSError, DivergedError) as error:
            print("error:", " ".join(str(error).split()), file=sys.stderr)
            raise typer.Exit(2) from error


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print("warning:", " ".join(str(message).split()), file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        from bayesnn import __version__

        print(f"bayesnn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Bayesian neural networks in PyTorch."""
