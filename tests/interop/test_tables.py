"""The commands on tables in files: what they write, and what they say of bad input."""

from __future__ import annotations

import base64
import gzip
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from pyro_vmonf import FlowMixture, Gaussian, VMoNF
from pyro_vmonf.__main__ import main
from pyro_vmonf.interop.tables import read_table, write_table

BAD = "<script>alert(1)</script>"  # a column's name
N = 40


def table() -> pandas.DataFrame:
    """Two clusters far from each other, a row without a number, names and labels."""
    x = np.random.default_rng(0).normal(size=(N, 3))
    x[::2] += 20
    frame = pandas.DataFrame(x, columns=["a", BAD, "c"])
    frame.loc[5, "c"] = np.nan
    frame["kind"] = np.where(np.arange(N) % 2 == 0, "<i>far</i>", "near")
    frame.loc[10:, "kind"] = ""
    return frame


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fit")
    table().to_csv(out / "<b>table.csv", index=False)
    arguments = [str(out / "<b>table.csv"), "--out", str(out), "--components", "2"]
    assert main(["fit", *arguments, "--label", "kind", "--minutes", "0.05", "--quiet"]) == 0
    return out


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_each_row_of_the_file_has_its_line(folder: Path) -> None:
    found = pandas.read_csv(folder / "clusters.csv")
    vmonf, whole = VMoNF.load(folder / "model.pt"), table().drop(columns="kind")
    assert found["row"].tolist() == list(range(N))
    kept, rows = found, whole  # a row with a gap among them
    assert whole.isna().any(axis=1).sum() == 1
    np.testing.assert_array_equal(kept["cluster"], vmonf.predict(rows))
    np.testing.assert_allclose(kept["log_density"], vmonf.log_prob(rows), rtol=1e-5)
    np.testing.assert_allclose(kept[["p_0", "p_1"]], vmonf.predict_proba(rows), atol=1e-6)
    np.testing.assert_allclose(kept["probability"], kept[["p_0", "p_1"]].max(axis=1))
    # Labels in the order of their names: far is 0.
    assert kept["cluster"].tolist() == [int(row % 2) for row in kept["row"]]


def test_the_page_escapes_the_table_and_holds_its_pictures(folder: Path) -> None:
    page = Page(folder / "report.html")
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "b", "i"} & set(tags)
    for text in ("Clusters of <b>table.csv", f"mean {BAD}", "0 <i>far</i>", "1 of 40 rows lack"):
        assert text in page.text
    pictures = [a["src"] or "" for tag, a in page.tags if tag == "img"]
    assert len(pictures) >= 2
    for source in pictures:
        head, code = source.split(",")
        assert head == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(code))).width > 600
    assert not [a for _, a in page.tags if "href" in a], "the page stands alone"


def test_columns_of_one_name_are_named_where_rows_are_scored(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new, out = tmp_path / "new.csv", tmp_path / "scores.csv"
    table()[["a", "a", BAD, "c"]].to_csv(new, index=False)
    assert main(["score", str(folder), str(new), "--out", str(out)]) == 0
    said = "".join(capsys.readouterr())
    assert "several columns are named a; the later ones are called a.1" in said


def test_other_rows_are_scored_by_the_names_of_the_columns(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table()[["kind", "c", BAD, "a"]].to_csv(tmp_path / "new.csv", index=False)
    assert main(["score", str(folder), str(tmp_path / "new.csv")]) == 0
    printed = pandas.read_csv(io.StringIO(capsys.readouterr().out))
    pandas.testing.assert_frame_equal(printed, pandas.read_csv(folder / "clusters.csv"))
    out = tmp_path / "scores.csv"
    arguments = [str(folder / "model.pt"), str(tmp_path / "new.csv"), "--out", str(out)]
    assert main(["score", *arguments]) == 0
    pandas.testing.assert_frame_equal(pandas.read_csv(out), printed)


def test_rows_are_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(folder), "-n", "7", "--cluster", "1", "--seed", "3"]) == 0
    drawn = pandas.read_csv(io.StringIO(capsys.readouterr().out))
    assert list(drawn.columns) == ["a", BAD, "c", "cluster"]
    assert drawn["cluster"].tolist() == [1] * 7
    x, _ = VMoNF.load(folder / "model.pt").sample(7, component=1, seed=3)
    np.testing.assert_allclose(drawn[["a", BAD, "c"]], x, rtol=1e-5)


def test_the_page_of_another_table(folder: Path, tmp_path: Path) -> None:
    table().head(12).to_csv(tmp_path / "few.csv", index=False)
    out = tmp_path / "few.html"
    assert main(["report", str(folder), str(tmp_path / "few.csv"), "--out", str(out)]) == 0
    assert "Clusters of few.csv" in Page(out).text


def test_what_was_said_is_kept(folder: Path) -> None:
    kept = json.loads((folder / "fit.json").read_text())
    assert kept["columns"] == ["a", BAD, "c"]
    assert kept["labels"] == ["<i>far</i>", "near"]
    assert kept["choice"]["components"] == 2
    assert "1 of 40 rows lack a number, and the fit sums it out" in kept["notes"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "none.csv"], "there is no file none.csv"),
        (["fit", "words.csv"], r"no column of numbers to fit; its columns are w (str"),
        (
            ["fit", "table.csv", "--columns", "a,kind"],
            "kind of table.csv are not all numbers: kind",
        ),
        (["fit", "table.csv", "--drop", "z"], "has no column z; it has a, "),
        (["fit", "semicolons.csv"], "pass --separator ';'"),
        (["fit", "binary.csv"], "binary.csv is no CSV with a header"),
        (["fit", "holes.csv"], "no row of holes.csv has a finite number in a, b"),
        (["fit", "table.csv", "--components", "99"], "x has 40 rows; expected at least 99"),
        (["score", "nowhere", "table.csv"], "pass the folder that `fit --out` wrote"),
        (["score", "pair.pt", "words.csv"], "words.csv has no column of numbers"),
        (
            ["score", "pair.pt", "table.csv"],
            "has 3 columns of numbers and the pair was fitted on 2",
        ),
        (["run", "pinwheel", "--labels", "9"], "pinwheel has no labels; leave out --labels"),
        (
            ["fit", "table.csv", "--columns", "a,kind", "--label", "kind"],
            "column kind is the label",
        ),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    table().to_csv("table.csv", index=False)
    Path("words.csv").write_text("w\none\ntwo\n")
    Path("semicolons.csv").write_text("a;b\n1;2\n3;4\n")
    Path("holes.csv").write_text("a,b\n,\n1,inf\n")
    Path("binary.csv").write_bytes(bytes(range(200, 256)) * 9)
    VMoNF(FlowMixture(Gaussian(2, 2))).save("pair.pt")
    before = sorted(tmp_path.iterdir())
    more = ["--out", "out"] if arguments[0] == "fit" else []
    assert main([*arguments, *more]) == 2
    assert message in capsys.readouterr().err.replace("str)", "str")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(("rows", "counts"), [("1,5\n2,1\n3,9\n", 1), ("1,5\n2,1\n4,9\n", 0)])
def test_a_counter_is_named(rows: str, counts: int, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"id,v\n{rows}")
    said = read_table(tmp_path / "t.csv").said
    assert sum("column 'id' counts the rows" in line for line in said) == counts


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt(), 130), (FloatingPointError("20 steps"), 1), (OSError("disk full"), 1)],
)
def test_the_exit_status_says_what_went_wrong(
    error: BaseException, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> VMoNF:
        raise error

    monkeypatch.setattr(VMoNF, "from_data", fails)
    table().to_csv(tmp_path / "table.csv", index=False)
    out = tmp_path / "out"
    assert main(["fit", str(tmp_path / "table.csv"), "--out", str(out)]) == status
    assert not out.exists()


@pytest.mark.parametrize("command", ["fit", "score", "sample", "report"])
def test_help_reads_like_a_page(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main([command, "--help"])
    assert status.value.code == 0
    page = capsys.readouterr().out
    for part in ("usage: ", "examples:\n  python -m pyro_vmonf " + command, "exit status:", "130"):
        assert part in page
    assert max(map(len, page.splitlines())) <= 100


def test_digits_stay_in_the_file(tmp_path: Path) -> None:
    """Rows near 1e9 with a spread of 1."""
    frame = pandas.DataFrame({"t": 1e9 + np.random.default_rng(0).normal(size=30)})
    frame.to_csv(tmp_path / "t.csv", index=False)
    read = read_table(tmp_path / "t.csv").frame
    pandas.testing.assert_frame_equal(read, frame)
    vmonf = VMoNF(FlowMixture(Gaussian(1, 2).double()))
    vmonf.model.standardize_(read)
    vmonf.save(tmp_path / "pair.pt")
    arguments = [str(tmp_path / "pair.pt"), "-n", "30", "--seed", "0"]
    assert main(["sample", *arguments, "--out", str(tmp_path / "drawn.csv")]) == 0
    drawn = pandas.read_csv(tmp_path / "drawn.csv")["t"]
    np.testing.assert_array_equal(drawn, vmonf.sample(30, seed=0)[0][:, 0])
    assert drawn.nunique() == 30


class Terminal(io.StringIO):
    """What a person sees."""

    def isatty(self) -> bool:
        return True


def test_score_and_report_show_their_parts_in_a_terminal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    rows = str(folder / "<b>table.csv")
    for command, name in (("score", "densities"), ("report", "certainty")):
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        assert main([command, str(folder), rows, "--out", str(tmp_path / "out.csv")]) == 0
        assert f"{command}, {name}" in terminal.getvalue()


def test_a_parquet_file_is_read_and_written_as_a_csv_file_is(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    table().to_parquet(tmp_path / "table.parquet", index=False)
    table().to_csv(tmp_path / "table.csv", index=False)
    read, expected = (
        read_table(tmp_path / f"table.{kind}", label="kind") for kind in ("parquet", "csv")
    )
    pandas.testing.assert_frame_equal(read.frame, expected.frame)
    assert read.y is not None
    assert expected.y is not None
    assert torch.equal(read.y, expected.y)
    assert read.names == expected.names
    write_table(read.frame, tmp_path / "again.parquet")
    again = pandas.read_parquet(tmp_path / "again.parquet")
    pandas.testing.assert_frame_equal(again, read.frame.reset_index(drop=True))


@pytest.mark.parametrize(
    "text",
    [
        "a,l,b\n1,x,2,\n3,y,5,\n4,x,4,\n",
        "a,b,l\n1,2,x,\n3,5,y,\n4,4,x,\n",
        "l,a\nx,1,\ny,3,\nx,4,\n",
    ],
)
def test_labels_stay_in_their_column_where_lines_end_with_a_comma(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(text)
    read = read_table(tmp_path / "t.csv", label="l")
    assert read.names == ["x", "y"]
    assert read.y is not None
    assert read.y.tolist() == [0, 1, 0]
    assert read.frame["a"].tolist() == [1, 3, 4]


def test_labels_stay_in_their_column_where_rows_have_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,l,b\nr1,1,x,2\nr2,3,01,5\nr3,4,NA,4\n")
    read = read_table(tmp_path / "t.csv", label="l")
    assert read.names == ["01", "NA", "x"]
    assert read.frame.to_dict("list") == {"a": [1, 3, 4], "b": [2, 5, 4]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,a,b\n1,2,3\n4,5,7\n", "several columns are named a; the later ones are called a.1"),
        (f"a,n\n1,{2**53 + 1}\n2,{2**53}\n", "column 'n' has whole numbers beyond 2^53"),
        (f"a,n\n1,{2**60 + 1}\n2,\n3,4\n", "column 'n' has whole numbers beyond 2^53"),
        ("a,b\n1,2\n3,?\n5,6\n7,8\n", "column 'b' has '?' in row 1, beside numbers; empty such"),
        ('a,b\n1,"1,5"\n2,"3,25"\n', "column 'b' has decimal commas, such as 1,5"),
        ('a,b\n1,"1,500"\n2,"3,250.5"\n3,20\n', "'b' has numbers with commas, such as 1,500"),
        ("Unnamed: 0,a\n1,4\n2,9\n3,1\n", "--drop 'Unnamed: 0' leaves it out"),
        ("a,l\n1,-1\n2,1\n3,2\n", "column 'l' has a class named -1"),
    ],
)
def test_a_note_says_what_a_column_holds(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text)
    label = "l" if ",l\n" in text else None
    notes = read_table(tmp_path / "t.csv", label=label).said
    assert any(said in note for note in notes), notes


@pytest.mark.parametrize("cells", ["", "   ", " ,", "  ,  "])
def test_a_line_of_spaces_is_a_row_without_numbers(cells: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"a,b\n1,2\n3,4\n{cells}\n5,6\n")
    table = read_table(tmp_path / "t.csv")
    assert table.frame.to_dict("list") == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert table.rows.tolist() == [0, 1, 3]


def test_names_are_found_without_the_spaces_around_them(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id, a, l , b\n1,2,01,8\n2,5,x,9\n")
    read = read_table(tmp_path / "t.csv", columns=["b", "a"], label="l")
    assert read.frame.to_dict("list") == {"b": [8, 9], "a": [2, 5]}
    assert read.names == ["01", "x"]
    assert list(read_table(tmp_path / "t.csv", drop=["id", "l"]).frame) == [" a", " b"]


def test_measurements_are_no_classes(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,l\n1,0.5\n3,1.25\n4,2\n8,\n")
    with pytest.raises(ValueError, match=r"'l' has 3 different values in 3 rows, such as 0\.5"):
        read_table(tmp_path / "t.csv", label="l")
    (tmp_path / "t.csv").write_text("a,l\n1,0.5\n3,1.5\n4,0.5\n8,1.5\n")  # doses
    assert read_table(tmp_path / "t.csv", label="l").names == ["0.5", "1.5"]


def test_a_column_is_used_or_dropped(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(ValueError, match="b is in --columns and in --drop"):
        read_table(tmp_path / "t.csv", columns=["a", "b"], drop=["b"])


# Without the time of day: names of tests are the same in each process.
HALF_AN_ARCHIVE = gzip.compress(b"a,b\n" + bytes(range(48, 58)) * 99, mtime=0)[:40]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv.gz", HALF_AN_ARCHIVE, "no CSV"),
        ("t.csv.gz", b"a,b\n1,2\n", "damaged archive"),
        ("t.csv.xz", b"a,b\n1,2\n", "no CSV"),
        ("t.csv.zip", b"a,b\n1,2\n", "no CSV"),
        ("t.csv", b"a;b\n1,5;2\n3,5;4\n", r"one column, 'a;b'; pass --separator ';'"),
        ("t.csv", b"a,b\n", "has no row below its header"),
        ("t.feather", b"ARROW1\x00\xff\xfe\x80\x81", r"no text in UTF-8; expected .*parquet"),
    ],
)
def test_files_that_are_no_tables_are_named(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_table(tmp_path / name)
    assert name in str(error.value)
    with pytest.raises(ValueError, match="is a folder"):
        read_table(tmp_path)


def test_a_separator_that_is_no_pattern_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"t\.csv is no CSV with a header"):
        read_table(tmp_path / "t.csv", separator="((")


def test_names_with_commas_stand_between_quotes(tmp_path: Path) -> None:
    frame = table().rename(columns={"a": "a, m"})
    frame.to_csv(tmp_path / "t.csv", index=False)
    out = str(tmp_path / "out")
    options = ["--drop", '"a, m",c', "--minutes", "0.001", "--quiet", "--components", "2"]
    assert main(["fit", str(tmp_path / "t.csv"), "--out", out, *options]) == 0
    assert json.loads((tmp_path / "out" / "fit.json").read_text())["columns"] == [BAD]


@pytest.mark.parametrize(
    "arguments",
    [["fit", "t.csv", "--out", "file/out"], ["run", "pinwheel", "--out", "file"]],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_fit(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(VMoNF, "from_data", lambda *_, **__: pytest.fail("it was fitted"))
    monkeypatch.setattr("pyro_vmonf.__main__.run", lambda *_, **__: pytest.fail("it ran"))
    table().to_csv("t.csv", index=False)
    Path("file").touch()
    assert main(arguments) == 1
    assert "cannot be made: Not a directory; pass another --out" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["run", "pinwheel", "--seeds"], ["sample", "fit", "--seed"]])
def test_seeds_have_64_bits(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, "9" * 23])
    assert "seed" in capsys.readouterr().err
