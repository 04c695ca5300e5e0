"""Tables that are read and pairs that are saved: right values where wrong ones were found."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.distributions import Gamma, Independent

from pyro_vmonf import FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.interop.delimited import read_delimited
from pyro_vmonf.interop.serving import Scores, export, from_safetensors_, to_safetensors
from pyro_vmonf.interop.tables import columns_of, read_table, samples
from pyro_vmonf.nn import MLP
from pyro_vmonf.transforms import PReLU
from tests.samples import X, normal_rows, sixty_rows, three_gaussians

K = 3
COLUMNS = {
    "constant": torch.ones(60, 1),
    "two values": (torch.arange(60) % 2)[:, None].float(),
    "whole": (torch.arange(60) % 7)[:, None].float(),
}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def test_a_delimiter_at_the_end_of_lines_shifts_no_column(tmp_path: Path) -> None:
    plain = read_table(written(tmp_path, "a,b,c\n1,2,3\n4,5,6\n"))
    other = read_table(written(tmp_path, "a,b,c\n1,2,3,\n4,5,6,\n"))
    assert other.frame.equals(plain.frame)
    assert list(other.frame.columns) == ["a", "b", "c"]


def test_names_of_rows_are_no_column_and_other_fields_are_refused(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, 'a,b\n"1",2.5,3\n"2",5,6\n')).frame
    assert found.to_numpy().tolist() == [[2.5, 3], [5, 6]]
    found = read_table(written(tmp_path, "a,b\nanna,2.5,3\nbert,5,6\n")).frame
    assert found.to_numpy().tolist() == [[2.5, 3], [5, 6]]
    with pytest.raises(ValueError, match="more fields than its header, which names 3 columns"):
        read_table(written(tmp_path, "a,b,c\n1.5,2,3,x\n4.5,5,6,y\n"))


def test_blank_lines_keep_the_positions_of_the_others(tmp_path: Path) -> None:
    found = read_table(written(tmp_path, "a\n1\n\n3\n\n5\n\n\n"))
    assert (found.whole, found.rows.tolist()) == (5, [0, 2, 4])
    assert found.frame["a"].tolist() == [1, 3, 5]
    assert any("2 of 5 rows have no number or an infinite one" in said for said in found.said)


@pytest.mark.parametrize("first", ["1.5,2", "1.5,1.5", "1990,1991", "-2,3e5"])
def test_a_first_line_of_numbers_is_named(first: str, tmp_path: Path) -> None:
    found = read_table(written(tmp_path, f"{first}\n3,4\n5,7\n"))
    assert found.whole == 2
    assert any("is taken as the names of the columns" in said for said in found.said)


@pytest.mark.parametrize("first", ["0,1", "1,2", "a,2"])  # as pandas and R name them
def test_other_first_lines_are_names(first: str, tmp_path: Path) -> None:
    found = read_table(written(tmp_path, f"{first}\n3,4\n5,7\n"))
    assert found.said == []


def test_separators_and_lines_are_read_as_they_are(tmp_path: Path) -> None:
    path = written(tmp_path, "a; b\n1; 2\n3; 4\n")
    assert read_table(path, separator="; ").frame.to_numpy().tolist() == [[1, 2], [3, 4]]
    found = read_table(written(tmp_path, "\n\na,b\n1,2\n3,4\n"))
    assert found.frame.to_numpy().tolist() == [[1, 2], [3, 4]]
    whole, _ = read_delimited(written(tmp_path, "id,b\n12345678901234567,2\n3,4\n\n"), None, None)
    assert whole["id"].tolist() == [12345678901234567, 3]


def test_a_column_named_cluster_stays() -> None:
    vmonf = three_gaussians()
    vmonf.model.feature_names = ("x", "cluster")
    found = samples(vmonf, 5, seed=0)
    assert list(found.columns) == ["x", "cluster", "cluster_of_pair"]
    np.testing.assert_array_equal(found[["x", "cluster"]], vmonf.sample(5, seed=0)[0].numpy())


def test_safetensors_keep_the_names_of_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame(X.numpy() * [1.0, 0.1], columns=["a", "b"])
    one, other = three_gaussians(), three_gaussians()
    one.fit(frame, epochs=1, progress=False, seed=0)
    to_safetensors(one, tmp_path / "pair.safetensors")
    from_safetensors_(other, tmp_path / "pair.safetensors")
    assert torch.equal(other.log_prob(frame[["b", "a"]]), one.log_prob(frame))
    third = three_gaussians()
    third.fit(X, epochs=1, progress=False, seed=0)
    to_safetensors(third, tmp_path / "plain.safetensors")
    from_safetensors_(other, tmp_path / "plain.safetensors")
    assert other.model.feature_names is None


def test_a_first_row_beside_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "iris.csv"
    path.write_text("5.1,3.5,setosa\n4.9,3.0,setosa\n6.1,2.5,virginica\n")
    assert any("is taken as the names of the columns" in said for said in read_table(path).said)


def test_columns_and_marks_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b,kind\n1,2,x\n3,4,-1\n5,6, \n7,8,y\n")
    with pytest.raises(ValueError, match="names a twice"):
        read_table(path, columns=["a", "a"])
    table = read_table(path, label="kind")
    assert table.names == ["x", "y"]
    assert table.y is not None
    assert table.y.tolist() == [0, -1, -1, 1]
    path.write_text("a,kind\n1,1\n2,-1\n3,1\n")  # of outliers: −1 is a class
    assert read_table(path, label="kind").names == ["-1", "1"]


def test_a_file_says_what_it_does_not_hold(tmp_path: Path) -> None:
    changes: list[Callable[[Any], object]] = [
        lambda bank: setattr(bank.transforms[0].univariate, "bound", 1.0),
        lambda bank: bank.transforms.append(PReLU(2)),
    ]
    for change in changes:
        vmonf, twin = (
            VMoNF(FlowMixture(RealNVP(2, 3, blocks=2))),
            VMoNF(FlowMixture(RealNVP(2, 3, blocks=2))),
        )
        change(vmonf.model.bank)
        change(twin.model.bank)
        with pytest.warns(UserWarning, match="was changed after it was built"):
            vmonf.save(tmp_path / "pair.pt")
        with pytest.raises(ValueError, match="into=vmonf"):
            VMoNF.load(tmp_path / "pair.pt")
        VMoNF.load(tmp_path / "pair.pt", into=twin)
        x = torch.randn(5, 2)
        assert torch.equal(twin.log_prob(x), vmonf.log_prob(x))


def test_scores_for_serving_are_those_of_the_verbs_after_a_fit() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.9), nn.Linear(8, 3))
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(network)).train()
    x = torch.randn(9, 2)
    assert torch.equal(Scores(vmonf)(x)[1], vmonf.predict_proba(x))


def test_labels_stand_as_they_are_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    for labels, classes in (
        (["None", "Heavy", "NA", ""], ["Heavy", "NA", "None"]),
        (["01", "1", "", "1"], ["01", "1"]),
        (["TRUE", "true", "", "x"], ["TRUE", "true", "x"]),
        (["9007199254740993", "9007199254740992", "", "1"], None),
    ):
        frame = pd.DataFrame({"a": [1.0, 2.0, 3.0, 5.0], "b": [4.0, 1.0, 2.0, 2.0], "s": labels})
        frame.to_csv(file, index=False)
        table = read_table(file, label="s")
        assert table.names == (classes or sorted(set(labels) - {""}))
        assert table.y is not None
        assert [table.names[c] if c >= 0 else "" for c in table.y.tolist()] == labels
    assert any("class named NA" in line for line in _said(file, ["NA", "x", "", "y"]))


def _said(file: Path, labels: list[str]) -> list[str]:
    rows = "".join(f"{i},{i * i},{label}\n" for i, label in enumerate(labels))
    file.write_text("a,b,s\n" + rows)
    return read_table(file, label="s").said


def test_blank_lines_of_a_packed_file_are_no_rows(tmp_path: Path) -> None:
    text = "\n\na,b\n1,2\n3,4\n5,inf\n\n\n"
    with gzip.open(tmp_path / "table.csv.gz", "wt") as file:
        file.write(text)
    table = read_table(tmp_path / "table.csv.gz")
    assert table.whole == 3
    assert any("1 of 3 rows have no number or an infinite one" in line for line in table.said)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", COLUMNS)
def test_a_pair_of_columns_that_are_no_real_numbers_comes_back(kind: str, tmp_path: Path) -> None:
    x = torch.cat([sixty_rows(), COLUMNS[kind]], 1)
    vmonf = VMoNF.from_data(x, components=1, seed=0, minutes=0.02, progress=False)
    assert vmonf.history is not None
    assert vmonf.history.choice["columns"]
    vmonf.save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt")
    assert loaded.history is not None
    assert loaded.history.choice == vmonf.history.choice
    assert torch.equal(loaded.log_prob(x), vmonf.log_prob(x))
    assert str(loaded.report()) == str(vmonf.report())


def test_parts_that_torch_cannot_trace_are_named() -> None:
    bank = Independent(Gamma(torch.ones(3, 2), 1.0, validate_args=True), 1)
    with pytest.raises(ValueError, match=r"torch\.export cannot trace this pair"):
        export(VMoNF(FlowMixture(bank)))
    assert export(VMoNF(FlowMixture(RealNVP(2, 2, blocks=1))))


def written_at(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "text", "count"),
    [
        ("e.tsv", "a\tb\n1\t2\n3\t4\n\t\n", 3),
        ("e.csv", 't,b,c\n"p\nq",2,1\n"r\ns",4,2\n\n\n', 2),
        ("e.csv", "a,b\n1,2\n\n3,4\n\n\n", 3),
        ("e.csv", "\n\na,b\n1,2\n3,4\n", 2),
        ("e.csv", "a,b\n1,2\n,\n", 2),
    ],
)
def test_a_file_has_its_number_of_rows(tmp_path: Path, name: str, text: str, count: int) -> None:
    assert read_table(written_at(tmp_path / name, text)).whole == count


def test_classes_that_are_numbers_have_the_order_of_numbers(tmp_path: Path) -> None:
    lines = "\n".join(f"{i / 7},{i % 12}" for i in range(36))
    table = read_table(written_at(tmp_path / "t.csv", "x,y\n" + lines), label="y")
    assert table.names == [str(i) for i in range(12)]
    assert table.y is not None
    assert table.y.tolist() == [i % 12 for i in range(36)]
    text = "x,y\n1,b\n2,10\n3,inf\n4,9\n5,a\n"
    mixed = read_table(written_at(tmp_path / "m.csv", text), label="y")
    assert mixed.names == ["9", "10", "a", "b", "inf"]


def test_samples_never_replace_a_column() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
    vmonf.model.feature_names = ("cluster", "cluster_of_pair")
    frame = samples(vmonf, 5, seed=0)
    assert list(frame) == ["cluster", "cluster_of_pair", "cluster_of_pair_of_pair"]
    x, c = vmonf.sample(5, seed=0)
    np.testing.assert_allclose(frame.iloc[:, :2].to_numpy(), x.numpy())
    assert frame.iloc[:, 2].tolist() == c.tolist()


def test_names_of_a_parquet_file_may_be_numbers(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "i.parquet"
    pd.DataFrame(sixty_rows().numpy(), columns=[5, 9]).to_parquet(path)
    table = read_table(path)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
    vmonf.fit(table.frame, epochs=1, progress=False)
    assert list(columns_of(vmonf, path).frame) == ["5", "9"]
    assert not table.said


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"no table")
    with pytest.raises(ValueError, match="is no table in Parquet"):
        read_table(path)


def test_scores_of_a_row_with_a_gap_are_nan() -> None:
    torch.manual_seed(0)
    scores = Scores(VMoNF(FlowMixture(RealNVP(2, 3, blocks=2)), SoftmaxGuide(MLP(2, 3))))
    x = normal_rows(3, 2)
    x[1, 0] = torch.nan
    before = torch.get_rng_state()
    log_prob, q = scores(x)
    assert log_prob.isnan().tolist() == [False, True, False]
    assert q.isnan().all(1).tolist() == [False, True, False]
    assert torch.get_rng_state().equal(before)
    whole, _ = scores(x[::2])
    torch.testing.assert_close(log_prob[::2], whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_safetensors_of_rows_far_from_zero_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    def pair() -> VMoNF:
        return VMoNF(FlowMixture(Gaussian(2, 2)), SoftmaxGuide(MLP(2, 2))).to(dtype)

    x = normal_rows(60, 2).double() + torch.tensor([1.7e9, 3.0], dtype=torch.float64)
    vmonf, other = pair(), pair()
    vmonf.fit(x, epochs=1, progress=False, seed=0)
    to_safetensors(vmonf, tmp_path / "file")
    from_safetensors_(other, tmp_path / "file")
    assert torch.equal(other.log_prob(x), vmonf.log_prob(x))
    wrong = pair().to(torch.float64 if dtype == torch.float32 else torch.float32)
    with pytest.raises(ValueError, match=f"convert the pair first: vmonf.to\\({dtype}\\)"):
        from_safetensors_(wrong, tmp_path / "file")
