import io
import math
import re

import pytest
from rich.console import Console

from bayesnn.table import lines, markdown, standard_error, terminal


def rows(scores, key="nll", net="mlp"):
    """{method: score by seed} as the rows of a comparison."""
    return [
        {"net": net, "method": method, "seed": seed, key: value}
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ]


def best(scores, key="nll"):
    return {line.method for line in lines(rows(scores, key), (key,)) if line.cells[key].best}


def test_standard_error_of_1_2_3_4():
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3) / 2)


def test_within_a_standard_error_is_not_better():
    # The differences of b to a are 0.1 and 0.3, of mean 0.2 and standard error 0.1 ...
    assert best({"a": (1.0, 1.0), "b": (1.1, 1.3), "c": (2.0, 2.0)}) == {"a"}
    # ... and here -0.02 and 0.3, of mean 0.14 and standard error 0.16.
    assert best({"a": (1.0, 1.0), "b": (0.98, 1.3), "c": (2.0, 2.0)}) == {"a", "b"}


def test_differences_are_those_of_the_same_seed():
    # The seeds differ by far more than the methods, and yet b is worse with each of them.
    assert best({"a": (1.0, 5.0, 9.0), "b": (1.2, 5.1, 9.3)}) == {"a"}


@pytest.mark.parametrize(
    ("key", "expected"), [("nll", {"low"}), ("accuracy", {"high"}), ("coverage", {"near"}), ("seconds", set())]
)
def test_the_direction_is_the_columns(key, expected):
    assert best({"low": (0.1, 0.11), "near": (0.88, 0.93), "high": (0.99, 0.98)}, key) == expected


def test_one_seed_has_no_best_and_neither_has_what_failed_or_is_short_of_seeds():
    assert best({"a": (1.0,), "b": (2.0,)}) == set()
    assert best({"failed": (0.1, math.nan), "short": (0.1,), "a": (1.0, 1.0), "b": (2.0, 2.1)}) == {"a"}


def test_what_failed_says_so():
    (line,) = lines(rows({"a": (math.nan, math.nan)}), ("nll",))
    assert line.cells["nll"].text == "failed"
    (line,) = lines(rows({"a": (1.0, math.nan)}), ("nll",))
    assert (line.cells["nll"].text, line.cells["nll"].value) == ("1.000 (1 of 2)", 1.0)
    (line,) = lines(rows({"a": (1.0, math.inf)}), ("nll",))  # a loss of infinity is no failure
    assert (line.cells["nll"].text, line.cells["nll"].value) == ("inf", math.inf)


def test_the_terminal_shows_what_markdown_shows_and_no_name_is_markup():
    scores = {"[red]a[/red]": (1.0, 1.2), "b": (2.0, 2.4), "c": (math.nan, math.nan)}
    body = lines(rows(scores), ("nll",))
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    console.print(terminal(body, ("nll",), several=False))
    shown = console.file.getvalue()
    for line in markdown(body, ("nll",), several=False).splitlines()[2:]:
        name, cell = (part.strip() for part in line.strip("| ").split("|"))
        assert name in shown
        assert cell in shown
    assert "\x1b[1;32m1.100 ± 0.100\x1b[0m" in shown  # the best: bold, green
    assert re.search(r"\x1b\[31m +failed\x1b", shown)
