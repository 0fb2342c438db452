"""The ``bayesnn`` command: a thin skin over the library. One command, one file."""

from bayesnn.cli import compare as compare  # each of these puts its command into the application
from bayesnn.cli import data as data
from bayesnn.cli import diagnose as diagnose
from bayesnn.cli import fit as fit
from bayesnn.cli import plot as plot
from bayesnn.cli import predict as predict
from bayesnn.cli._app import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the ``bayesnn`` command."""
    app()
