import pytest
import torch

from bayesnn.data.tables import read_table


@pytest.fixture
def table(tmp_path):
    def read(text, encoding="utf-8"):
        path = tmp_path / "table.csv"
        path.write_bytes(text.encode(encoding))
        return read_table(path)

    return read


@pytest.mark.parametrize("separator", [",", ";", "\t", ", "])
def test_columns_by_name_in_the_order_asked_for(table, separator):
    read = table(f"a{separator}b\n1{separator}2.5\n\n-3{separator}1e2\n")
    assert read.numbers(["b", "a"]).tolist() == [[2.5, 1.0], [100.0, -3.0]]
    assert read.numbers(["a"]).dtype == torch.float64


def test_quotes_and_a_mark_of_the_byte_order(table):
    read = table('"a, in m",b\r\n"1","x ""y"""\r\n', "utf-8-sig")
    assert read.columns == {"a, in m": ["1"], "b": ['x "y"']}


def test_float64_keeps_what_float32_would_lose(table):
    assert table("a\n1000000001\n").numbers(["a"]).item() == 1000000001


def test_integers_are_classes_in_the_order_of_their_numbers(table):
    y, classes = table("y\n" + "10\n9\n-1\n" * 10).target("y")
    assert (y[:3].tolist(), classes) == ([2, 1, 0], ("-1", "9", "10"))
    assert y.dtype == torch.int64


def test_text_is_classes_and_numbers_are_a_regression(table):
    y, classes = table("y\n" + "no\nyes\n" * 10).target("y")
    assert (y[:2].tolist(), classes) == ([0, 1], ("no", "yes"))
    y, classes = table("y\n1.0\n2\n").target("y")
    assert (y.tolist(), classes) == ([1.0, 2.0], None)


def test_among_words_na_is_a_class_and_an_underscore_makes_no_number(table):
    assert table("y\nEU\nNA\nEU\n").target("y", "classes")[1] == ("EU", "NA")
    with pytest.raises(ValueError, match="got '1_010' in line 3"):
        table("a\n1\n1_010\n").numbers(["a"])


def test_the_user_decides_otherwise(table):
    read = table("y,z\n1,0.5\n2,1.5\n")
    y, classes = read.target("y", "regression")
    assert (y.tolist(), y.dtype, classes) == ([1.0, 2.0], torch.float64, None)
    y, classes = read.target("z", "classes")
    assert (y.tolist(), classes) == ([0, 1], ("0.5", "1.5"))


def test_many_classes_of_few_rows_are_warned_of(table):
    read = table("y\n" + "".join(f"{i}\n" for i in range(12)))
    with pytest.warns(UserWarning, match="12 classes in 12 rows: of a number, ask for a regression"):
        read.target("y")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y\n1\n\n", "at least two classes in column 'y'"),
        ("x,y\n1,a\n2,\n", "got none in line 3"),
        ("y\n0.5\nNA\n", "got none in line 3"),
        ("x\n1\n", "Expected a target among the columns"),
    ],
)
def test_targets_that_cannot_be(table, text, message):
    with pytest.raises(ValueError, match=message):
        table(text).target("y")


def test_text_as_a_regression_names_its_line(table):
    with pytest.raises(ValueError, match="got 'b' in line 3"):
        table("y\n1\nb\n").target("y", "regression")


def test_a_line_in_quotes_counts_as_the_lines_that_it_takes(table):
    with pytest.raises(ValueError, match="got 'x' in line 4"):
        table('a,b\n"two\nlines",1\n"one",x\n').numbers(["b"])


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("a,,b\n1,2,3\n", "utf-8", "got one without"),
        ("a,a\n1,2\n", "utf-8", "got 'a' twice"),
        ("ä,b\n1,2\n", "latin-1", "Expected a CSV file in UTF-8"),
        ('a,b\n"1,2\n', "utf-8", "Expected a CSV file in UTF-8"),
        ("a,b\n1,2,3\n", "utf-8", "Expected 2 cells in line 2 of .*, got 3"),
    ],
)
def test_files_that_are_no_tables(table, text, encoding, message):
    with pytest.raises(ValueError, match=message):
        table(text, encoding)
