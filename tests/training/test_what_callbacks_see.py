"""Callbacks of a fit have the pair as it is after the fit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.infer.util import is_validation_enabled

from pyro_vmonf import ExactGuide, FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.contexts import evaluating
from pyro_vmonf.nn import MLP
from pyro_vmonf.training.callbacks import Progress
from tests.samples import normal_rows

X = normal_rows(60, 2)
NEW = torch.tensor([[0.3, torch.nan], [0.2, 0.1]])
VERBS = ("log_prob", "component_log_prob", "predict_proba", "predict", "elbo")


def pair(bank: str, exact: bool = False) -> VMoNF:
    torch.manual_seed(0)
    flows = Gaussian(2, 2) if bank == "gaussian" else RealNVP(2, 2, blocks=1)
    guide = ExactGuide() if exact else SoftmaxGuide(MLP(2, 2))
    return VMoNF(FlowMixture(flows, "learned"), guide)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("bank", ["gaussian", "flow"])
@pytest.mark.parametrize("gappy", [False, True])
def test_they_score_rows_with_gaps(gappy: bool, bank: str, exact: bool) -> None:
    vmonf, within = pair(bank, exact), []

    def score(progress: Progress) -> None:
        within.append({verb: getattr(vmonf, verb)(NEW) for verb in VERBS})

    x = torch.where(torch.arange(120).reshape(60, 2) == 7, torch.nan, X) if gappy else X
    vmonf.fit(x, epochs=2, callbacks=score, progress=False, seed=0, keep="last")
    for verb in VERBS:
        assert torch.equal(within[-1][verb], getattr(vmonf, verb)(NEW)), verb
    others = pair(bank, exact)
    others.fit(x, epochs=2, progress=False, seed=0, keep="last")
    assert torch.equal(others.log_prob(X), vmonf.log_prob(X))  # and they change no step


def test_they_copy_and_save_the_pair(tmp_path: Path) -> None:
    vmonf, kept = pair("gaussian"), []

    def keep(progress: Progress) -> None:
        kept.append(copy.deepcopy(vmonf))
        vmonf.save(tmp_path / "pair")

    vmonf.fit(X, epochs=1, callbacks=keep, progress=False, seed=0)
    for other in (kept[0], VMoNF.load(tmp_path / "pair")):
        for verb in VERBS:
            assert torch.equal(getattr(other, verb)(NEW), getattr(vmonf, verb)(NEW)), verb


def test_an_error_in_a_callback_leaves_the_pair_as_it_is() -> None:
    vmonf = pair("gaussian")

    def fail(progress: Progress) -> None:
        raise RuntimeError("of the user")

    with pytest.raises(RuntimeError, match="of the user"):
        vmonf.fit(X, epochs=1, callbacks=fail, progress=False)
    assert vmonf.component_log_prob(NEW).isfinite().all()


Y = torch.where(torch.arange(60) < 30, torch.arange(60) % 2, -1)
COURSE: dict[str, Any] = {"keep": "best", "progress": False, "temperature": 1.0}


def test_interleaved_states_are_judged_by_all_rows() -> None:
    """Those with labels train as well, and count in the objective of a state."""
    plain, parted = pair("gaussian"), pair("gaussian")
    first = plain.fit(X, Y, epochs=1, seed=0, **COURSE)
    other = parted.fit(X, Y, epochs=1, seed=0, interleave=True, **COURSE)
    assert other.start == pytest.approx(first.start, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_interleaved_state_that_stays_is_the_best(seed: int) -> None:
    vmonf, found = pair("gaussian"), []

    def objective() -> float:
        with evaluating(vmonf):  # in which no weights are counted
            elbo = TraceEnum_ELBO(max_plate_nesting=1)
            return -elbo.loss(vmonf.model, vmonf.guide, X, Y) / len(X)

    def judge(progress: Progress) -> None:
        found.append(objective())

    options = {**COURSE, "epochs": 8, "lr": 0.5, "interleave": True, "seed": seed}
    history = vmonf.fit(X, Y, callbacks=judge, **options)
    assert history.kept == max(range(8), key=found.__getitem__)
    assert objective() == pytest.approx(max(found), abs=1e-5)


def test_no_step_follows_when_the_time_is_over() -> None:
    options = {**COURSE, "batch_size": 30, "interleave": True, "minutes": 1e-9}
    assert pair("gaussian").fit(X, Y, **options).step == [1]


def test_batches_of_one_row_are_of_one_row() -> None:
    history = pair("gaussian").fit(X[:10], epochs=3, batch_size=1, progress=False)
    assert history.step == [10, 20, 30]


def test_pyro_validates_in_them_as_it_does_outside() -> None:
    found: list[bool] = []

    def look(progress: Progress) -> None:
        found.append(is_validation_enabled())
        with pytest.raises(ValueError, match="scale"):
            dist.Normal(0.0, torch.tensor(-1.0))

    pair("gaussian").fit(X, epochs=1, progress=False, callbacks=look)
    with pyro.validation_enabled(False):
        pair("gaussian").fit(
            X, epochs=1, progress=False, callbacks=lambda p: found.append(is_validation_enabled())
        )
    assert found == [True, False]
