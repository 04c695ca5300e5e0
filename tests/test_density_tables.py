"""The tables of the density benchmark: cuts, noise and units; and a run that goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import density
from benchmarks.density_tables import columns_of, in_units, patches, tables

ROWS = 120


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(ROWS, 4))
    x[:, 1] = np.rint(30 * x[:, 1])
    x[:, 2] = x[:, 0] + 1e-3 * x[:, 3]  # says the same as the first one
    x[:, 3] = np.arange(ROWS) % 3
    np.savetxt(tmp_path / "plain.csv.gz", x, delimiter=",")
    y = np.arange(ROWS) % 10 == 0
    np.savez(tmp_path / "1_odd.npz", X=x[:, :2] + 9 * y[:, None], y=y)
    return tmp_path


def test_columns_are_dropped_and_grids_get_noise(folder: Path) -> None:
    x = np.genfromtxt(folder / "plain.csv.gz", delimiter=",")
    found = columns_of(x)
    assert found.shape == (ROWS, 2)
    np.testing.assert_array_equal(found[:, 0], x[:, 0])
    away = found[:, 1] - x[:, 1]
    assert 0.4 < np.abs(away).max() <= 0.5
    assert len(np.unique(away)) == ROWS


def test_folds_part_the_rows_and_have_the_units_of_training(folder: Path) -> None:
    make, count = tables(folder)["plain"]
    assert count == 10
    splits = [make(number) for number in range(count)]
    assert [len(split.test) for split in splits] == [ROWS // 10] * 10
    for split in splits:
        np.testing.assert_allclose(split.train.mean(0), 0, atol=1e-12)
        np.testing.assert_allclose(split.train.std(0), 1)
    assert in_units(np.eye(3)[:, :2], np.eye(2)).test.shape == (2, 2)


def test_anomalies_are_only_in_the_test_rows(folder: Path) -> None:
    split = tables(folder)["1_odd"][0](0)
    assert split.unusual is not None
    assert (len(split.train), len(split.test), split.unusual.sum()) == (54, 66, 12)


def test_patches_have_63_pixels_of_mean_near_zero(tmp_path: Path) -> None:
    from PIL import Image

    grey = np.random.default_rng(0).integers(256, size=(20, 30, 3), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.jpg")
    found = patches(tmp_path, 50, np.random.default_rng(0))
    assert found.shape == (50, 63)
    assert np.abs(found).max() < 1
    last = -found.sum(1)  # the pixel that is left out
    assert np.abs(last).max() < 1


def test_kernels_are_a_density() -> None:
    train, grid = torch.randn(40, 1), torch.linspace(-9, 9, 2000)[:, None]
    for found in density.kernels(train, grid, [0.1, 0.5]):
        assert float(found.exp().sum() * 18 / 1999) == pytest.approx(1, abs=1e-3)


def test_a_run_goes_on_where_it_ended(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "found.jsonl"
    given = [str(folder), "--json", str(file), "--splits", "2", "--methods"]
    density.main([*given, "gaussian_mixture"])
    assert len(file.read_text().splitlines()) == 4
    density.main([*given, "gaussian_mixture,kernel_density"])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == len({(r["table"], r["split"], r["method"]) for r in rows}) == 8
    for row in rows:
        assert ("nats" in row) == (row["table"] == "plain")
        assert row.get("auroc", 1.0) > 0.95
    assert "| plain |" in capsys.readouterr().out
