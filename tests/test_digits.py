"""Rows with more digits than the model: times since 1970, map coordinates."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pyro_vmonf import ExactGuide, FlowMixture, MAFMoG, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.metrics import match_components
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts import warm_start_
from pyro_vmonf.terms import Batch, Consistency
from pyro_vmonf.transforms import Standardize

K, D, N = 3, 2, 120
SPREAD = torch.tensor([3.0, 0.02], dtype=torch.float64)
BASE = torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * SPREAD
OFFSETS = {
    "seconds since 1970": (1.7e9, 0.0),
    "map coordinates": (4_512_345.0, 52.123456),
    "years": (2005.0, -1e5),
}
QUIET: dict[str, Any] = {"progress": False, "seed": 0}
CHECKED = ("log_prob", "component_log_prob", "predict_proba", "elbo")


def moved(batch: Batch) -> Tensor:
    return batch.x + 0.1 * SPREAD.to(batch.x)


def pair(guide: str = "softmax") -> VMoNF:
    torch.manual_seed(0)
    model = FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,)), "learned")
    if guide == "exact":
        return VMoNF(model, ExactGuide())
    terms = [Consistency(moved)] if guide == "terms" else None
    return VMoNF(model, SoftmaxGuide(MLP(D, K, hidden=(4,)), terms))


def says_the_same(far: VMoNF, near: VMoNF, offset: Tensor) -> None:
    for verb in CHECKED:
        found, expected = getattr(far, verb)(BASE + offset), getattr(near, verb)(BASE)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=verb)
    one = far.log_prob((BASE + offset)[:1])  # a row alone has no spread
    torch.testing.assert_close(one, near.log_prob(BASE[:1]), rtol=1e-4, atol=1e-4)


def of(name: str) -> Tensor:
    return torch.tensor(OFFSETS[name], dtype=torch.float64)


WAYS = {
    "rows": lambda x: x,
    "array": lambda x: x.numpy(),
    "loader": lambda x: DataLoader(x, batch_size=N),
    "small batches": lambda x: DataLoader(x, batch_size=40),
    "data set": lambda x: TensorDataset(x),
}


@pytest.mark.parametrize("guide", ["softmax", "exact", "terms"])
@pytest.mark.parametrize("offset", OFFSETS)
def test_an_offset_takes_no_digits(offset: str, guide: str) -> None:
    far, near = pair(guide), pair(guide)
    options = {"epochs": 3, "batch_size": 40, "lr": 3e-3, "held_out": 0.2, **QUIET}
    there = far.fit(BASE + of(offset), **options)
    here = near.fit(BASE, **options)
    assert there.held_out == pytest.approx(here.held_out, abs=1e-4)
    says_the_same(far, near, of(offset))
    points, _ = far.sample(50, seed=0)
    torch.testing.assert_close(
        points - of(offset), near.sample(50, seed=0)[0].double(), rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("way", WAYS)
def test_rows_keep_their_digits_wherever_they_enter(way: str) -> None:
    offset = of("seconds since 1970")
    far, near = pair(), pair()
    far.fit(WAYS[way](BASE + offset), epochs=2, **QUIET)
    near.fit(WAYS[way](BASE), epochs=2, **QUIET)
    says_the_same(far, near, offset)


def test_restarts_starts_weights_and_resumed_runs_keep_digits(tmp_path: Path) -> None:
    offset = of("seconds since 1970")
    far, near = pair(), pair()
    for vmonf, x in ((far, BASE + offset), (near, BASE)):
        warm_start_(vmonf.guide, x, steps=5, seed=0)
    says_the_same(far, near, offset)
    far, near = pair(), pair()
    weight = torch.arange(N) % 3
    spoilt = BASE + offset
    spoilt[::3] = 0.0  # of weight zero
    for vmonf, x in ((far, spoilt), (near, BASE)):
        found = vmonf.fit(x, n_init=2, epochs=2, sample_weight=weight, **QUIET)
        assert len(found.restarts) == 2
    says_the_same(far, near, offset)
    whole, part = pair(), pair()
    path = tmp_path / "run.pt"
    whole.fit(BASE + offset, epochs=4, **QUIET)
    options: dict[str, Any] = {"epochs": 4, "checkpoint": path, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        part.fit(BASE + offset, seed=0, callbacks=interrupted, **options)
    again = pair()
    again.fit(BASE + offset, resume=path, **options)
    for one, other in zip(again.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def interrupted(progress: Any) -> None:
    if progress.epoch == 1:
        raise KeyboardInterrupt


def test_files_copies_and_kinds_keep_digits(tmp_path: Path) -> None:
    offset = of("seconds since 1970")
    far, near = pair(), pair()
    far.fit(BASE + offset, epochs=2, **QUIET)
    near.fit(BASE, epochs=2, **QUIET)
    far.save(tmp_path / "far.pt")
    loaded = VMoNF.load(tmp_path / "far.pt")
    says_the_same(loaded, near, offset)
    into = pair()
    into.load_state_dict(far.state_dict())
    says_the_same(into, near, offset)
    says_the_same(copy.deepcopy(far), near, offset)
    says_the_same(far.double().float(), near, offset)
    into.load_state_dict(near.state_dict())
    assert into.model.standardizer.loc.dtype == torch.float32
    says_the_same(into, near, torch.zeros(D))


def test_the_estimator_keeps_digits() -> None:
    offset = of("seconds since 1970").numpy()
    rows = BASE.numpy()
    options: dict[str, Any] = {"n_components": 2, "max_iter": 4, "random_state": 0}
    far = FlowMixtureClustering(**options).fit(rows + offset)
    near = FlowMixtureClustering(**options).fit(rows)
    np.testing.assert_allclose(
        far.score_samples(rows + offset), near.score_samples(rows), atol=1e-4, rtol=1e-4
    )


def test_rows_that_lose_nothing_stay_in_float32() -> None:
    plain, wide = pair(), pair()
    x = BASE.float()
    plain.fit(x, epochs=2, **QUIET)
    wide.fit(x.double(), epochs=2, **QUIET)
    for one, other in zip(plain.state_dict().values(), wide.state_dict().values(), strict=True):
        assert torch.equal(one, other)
        assert one.dtype != torch.float64
    assert plain.sample(3)[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_other_kinds_are_as_before(dtype: torch.dtype) -> None:
    x = (BASE / SPREAD + 3).to(dtype)
    units = Standardize((D,)).to(dtype)
    units.fit_(x)
    assert units.loc.dtype == units.scale.dtype == units.inv(x).dtype == dtype
    torch.testing.assert_close(units.loc, x.mean(0))
    torch.testing.assert_close(units.scale, x.std(0, unbiased=False))


def test_numbers_with_too_few_digits_are_refused_in_words() -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=1)))
    for rows in (torch.zeros(3, 2).to(torch.float8_e5m2), torch.zeros(3, 2, device="meta")):
        with pytest.raises(TypeError, match="pass rows of float32 or float64"):
            vmonf.log_prob(rows)
    with pytest.raises(TypeError, match=r"mixtures are in torch\.float16"):
        MAFMoG(2, 3, blocks=1).half()().log_prob(torch.zeros(4, 1, 2).half())
    q = torch.eye(3)[torch.tensor([2, 0, 1, 1])].bfloat16()
    assert match_components(torch.tensor([0, 1, 2, 2]), q).tolist() == [2, 0, 1]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_posteriors_pass_through_vmap() -> None:
    x = torch.randn(6, 2)
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=2)), SoftmaxGuide(MLP(2, 3, activation="tanh")))
    for posterior in (vmonf.guide.log_q, vmonf.model.log_posterior):
        torch.testing.assert_close(torch.vmap(posterior)(x), posterior(x))
        curved = torch.vmap(torch.func.hessian(lambda row, q=posterior: q(row)[0]))(x)
        alone = torch.func.hessian(lambda row, q=posterior: q(row)[0])(x[2])
        torch.testing.assert_close(curved[2], alone)


def test_gradients_and_vmap_pass_through_the_wide_map() -> None:
    x = (BASE + of("seconds since 1970")).requires_grad_()
    units = Standardize((D,))
    units.fit_(x.detach())
    assert units.loc.dtype == torch.float64
    z, log_det = units.inverse_and_log_det(x)
    assert z.dtype == log_det.dtype == torch.float32
    z.sum().backward()
    torch.testing.assert_close(x.grad, (1 / units.scale.double()).expand(N, D))
    mapped = torch.vmap(lambda row: units.inverse_and_log_det(row)[0])(x)
    assert torch.equal(mapped, z)
    assert torch.allclose(units(z), x, rtol=0, atol=1e-6)


def test_weights_of_whole_numbers_are_repeated_rows() -> None:
    weight = torch.arange(N) % 4
    one, other, parts = (Standardize((D,)).double() for _ in range(3))
    one.fit_(BASE, weight)
    other.fit_(BASE.repeat_interleave(weight, 0))
    parts.fit_batches_(zip(BASE.split(17), weight.split(17), strict=True))
    for units in (one, parts):
        torch.testing.assert_close(units.loc, other.loc, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(units.scale, other.scale, rtol=1e-12, atol=1e-12)
    alike = Standardize((D,)).double()
    alike.fit_(BASE, torch.full((N,), 3.0))
    plain = Standardize((D,)).double()
    plain.fit_(BASE)
    assert torch.equal(alike.loc, plain.loc)
    assert torch.equal(alike.scale, plain.scale)
