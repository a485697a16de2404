"""CSV files as spreadsheets of other countries write them: encodings, separators, decimal signs, odd numbers."""

from __future__ import annotations

import itertools
import sys
import warnings
from pathlib import Path

import pytest

from lstmcore.datasets import Layout, Series, read_columns, read_csv, read_panel
from lstmcore.notices import Notice

VALUES = [1.5, -20.25, 1234.5, 0.125]


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "my.csv"
    path.write_bytes(text.encode(encoding))
    return path


def lines(separator: str, decimal: str, *, header: str = "tag;größe") -> str:
    rows = [header, *(f"{row};{value}".replace(".", decimal) for row, value in enumerate(VALUES))]
    return "\r\n".join(row.replace(";", separator) for row in rows) + "\r\n"


def read(path: Path, **said: str) -> tuple[Series, list[str]]:
    """The series, and the notices."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (series,) = read_panel(path, "größe", Layout(**said))
    assert all(issubclass(warning.category, Notice) for warning in caught)
    return series, [str(warning.message) for warning in caught]


SEPARATORS = {",": "','", ";": "';'", "\t": "tabs", "|": "'|'"}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "latin-1")
FOUND = {"utf-8-sig": "", "utf-8": "", "latin-1": "cp1252 text"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("separator", "decimal"), [*itertools.product(SEPARATORS, ".,")])
def test_what_is_found_is_read_and_told(tmp_path: Path, encoding: str, separator: str, decimal: str) -> None:
    if (separator, decimal) == (",", ","):
        text = 'tag,größe\n0,"1,5"\n1,"-20,25"\n2,"1234,5"\n3,"0,125"\n'
    else:
        text = lines(separator, decimal)
    series, notes = read(write(tmp_path, text, encoding))
    assert series.values.tolist() == VALUES and series.labels == ("0", "1", "2", "3")
    parts = [
        FOUND.get(encoding, f"{encoding} text"),
        f"{SEPARATORS[separator]} between cells" if separator != "," else "",
        "',' as the decimal sign" if decimal == "," else "",
    ]
    listed = ", ".join(part for part in parts if part)
    wanted = [f"{tmp_path / 'my.csv'}: found {listed}; --encoding, --separator and --decimal say otherwise"]
    assert notes == (wanted if listed else [])


def test_what_is_said_is_not_told(tmp_path: Path) -> None:
    path = write(tmp_path, lines("\t", ","), "cp1252")
    for tab in ("tab", "\t", "\\t"):
        series, notes = read(path, separator=tab, decimal=",", encoding="cp1252")
        assert series.values.tolist() == VALUES and notes == []
    assert read(path, encoding="cp1252")[1][0].endswith(
        "my.csv: found tabs between cells, ',' as the decimal sign; --encoding, --separator and --decimal say otherwise"
    )
    spaced = write(tmp_path, lines(" ", "."))
    assert read(spaced, separator=" ")[0].values.tolist() == VALUES


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"separator": ";;"}, "separator: expected one sign such as ';', or tab; got ';;'"),
        ({"separator": "x"}, "separator: expected one sign such as ';', or tab; got 'x'"),
        ({"decimal": "'"}, "decimal: expected '.' or ','; got \"'\""),
        ({"encoding": "utf-9"}, "encoding: expected the name of one, such as utf-8, utf-16 or cp1252; got 'utf-9'"),
        ({"encoding": "base64"}, "encoding: expected the name of one"),
    ],
)
def test_what_cannot_be_said(tmp_path: Path, said: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path, lines(",", ".")), **said)


def test_a_first_line_that_announces_the_separator(tmp_path: Path) -> None:
    series, notes = read(write(tmp_path, "sep=;\r\n" + lines(";", ",")))
    assert series.values.tolist() == VALUES and series.lines.tolist() == [3, 4, 5, 6]
    assert len(notes) == 1 and "found ';' between cells" in notes[0]
    with pytest.raises(ValueError, match=r"my.csv, line 3, column 'größe': expected a number; got 'x'"):
        read(write(tmp_path, "sep=;\ntag;größe\n0;x\n"), separator=";")


def test_separators_in_quotes_separate_nothing(tmp_path: Path) -> None:
    series, notes = read(write(tmp_path, '"a;b",größe\n"1;2",1.5\n"3;4",2\n'))
    assert series.values.tolist() == [1.5, 2] and series.labels == ("1;2", "3;4") and notes == []
    series, notes = read(write(tmp_path, 'wo;größe\n"Bonn; Köln";"1,5"\n'))
    assert series.values.tolist() == [1.5] and series.labels == ("Bonn; Köln",) and len(notes) == 1


@pytest.mark.parametrize(
    ("cells", "decimal"),
    [
        (["1,234", "2,345"], "."),  # thousands, most likely
        (["1,234", "1.5"], "."),
        (["1,23", "1.5"], "."),
        (["1,5", "12"], ","),
        (["1,234", "0,5"], ","),
    ],
)
def test_a_comma_that_may_group_thousands_is_not_guessed(tmp_path: Path, cells: list[str], decimal: str) -> None:
    path = write(tmp_path, "größe\ttag\n" + "".join(f"{cell}\t{row}\n" for row, cell in enumerate(cells)))
    if decimal == ",":
        assert read(path)[0].values.tolist() == [float(cell.replace(",", ".")) for cell in cells]
        return
    with pytest.raises(ValueError, match="choose --decimal , if ',' is its decimal sign; take ',' out"):
        read(path, separator="tab")
    assert read(write(tmp_path, "größe;tag\n1,234;0\n"))[0].values.tolist() == [1.234]  # a country of decimal commas


@pytest.mark.parametrize(
    ("cell", "hint"),
    [
        ("\u22125", "its minus sign is not the one of the keyboard: replace it by '-'"),
        ("\u20135", "its minus sign is not the one of the keyboard"),
        ("(5)", "write a negative number with '-', not in brackets"),
        ('"1,5"', "choose --decimal , if ',' is its decimal sign"),
        ('"1,234,567.5"', "take the signs that group thousands out of the numbers"),
        ("1 234", "take the signs that group thousands out"),
        ("1\u00a0234.5", "take the signs that group thousands out"),
        ("5 %", "take the unit out of the numbers"),
        ("€5.20", "take the unit out of the numbers"),
        ("#DIV/0!", "an error of a spreadsheet: mend its formula"),
        (".", "if it stands for a missing value, empty the cell and choose --fill"),
        ("?", "if it stands for a missing value"),
        ("north wind", "mend the cell, or, if the column holds words, read others"),
        ("n", None),
        ("1_000", None),
    ],
)
def test_a_cell_that_is_no_number_has_a_hint(tmp_path: Path, cell: str, hint: str | None) -> None:
    path = write(tmp_path, f"tag,größe\n0,1.5\n1,{cell}\n2,3.5\n")
    with pytest.raises(ValueError, match=r"line 3, column 'größe': expected a number; got ") as caught:
        read(path, decimal=".")
    _, got, ends = str(caught.value).partition(f"got {cell.strip(chr(34))!r}")
    assert got and ((hint in ends) if hint else ends == "")


def test_a_point_among_decimal_commas(tmp_path: Path) -> None:
    path = write(tmp_path, "tag;größe\n0;1,5\n1;1.234,5\n")
    with pytest.raises(ValueError, match=r"line 3, .* got '1.234,5': the decimal sign is ',', so take '.' out of the"):
        read(path)


@pytest.mark.parametrize("gap", ["", "NA", "n/a", "NaN", "null", "None", "#N/A", "#NA", "<NA>", "-nan", "NaT"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_gaps_of_other_programs(tmp_path: Path, gap: str, decimal: str) -> None:
    path = write(tmp_path, f"tag;größe\n0;1\n1;{gap}\n2;3\n")
    series = read(path, separator=";", decimal=decimal)[0]
    assert series.gaps.tolist() == [False, True, False]


def test_several_columns_have_the_same_rows(tmp_path: Path) -> None:
    """Sorted by time, with missing rows put in, and for each series of the file."""
    order = [3, 0, 1, 4, 6]
    path = write(
        tmp_path, "a,day,shop,b\n" + "".join(f"{d},2020-01-0{d + 1},{s},{10 * d}\n" for s in "xy" for d in order)
    )
    layout = Layout("shop", sort=True, insert=True)
    panel = read_columns(path, ["b", "a"], layout)
    for (b, a), name in zip(panel, "xy", strict=True):
        assert (b.column, a.column, b.id, a.id) == ("b", "a", name, name)
        assert b.labels == a.labels == tuple(f"2020-01-0{d + 1}" for d in range(7))
        assert a.filled("linear").values.tolist() == [*range(7)]
        assert (b.filled("linear").values == 10 * a.filled("linear").values).all()
    with pytest.raises(ValueError, match="columns: expected each once; got 'a' twice"):
        read_columns(path, ["a", "b", "a"], layout)
    for name in (None, 3, b"a"):
        with pytest.raises(TypeError, match=f"expected the name of a column, a text; got {name!r}"):
            read_columns(path, ["a", name], layout)  # type: ignore[list-item]


def test_a_decimal_comma_without_quotes_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 2: expected 2 cells as in the header; got 3: a cell with a comma must"):
        read(write(tmp_path, "tag,größe\n0,1,5\n"))


@pytest.mark.parametrize("missing", ["pandas", "pyarrow"])
def test_parquet_without_its_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """An error says what to install; tests/estimators reads such files."""
    if missing == "pyarrow":
        pytest.importorskip("pandas")
    for name in (missing, "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    path = tmp_path / "my.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"a Parquet file needs pandas.*: pip install "):
        read_csv(path, "y")
