"""Rows with missing entries in every verb, in fits and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, TraceEnum_ELBO
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    GatedWeights,
    Gaussian,
    LearnedWeights,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts.gaps import hot_deck
from pyro_vmonf.terms import Balance, Consistency
from pyro_vmonf.training.losses import ImportanceWeightedELBO
from pyro_vmonf.vmonf import automatic

K, D = 3, 3
QUIET: dict[str, Any] = {"progress": False, "seed": 0}


def blobs(count: int = 90, seed: int = 0, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Return three blobs with missing entries, at random but for whole rows, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % K
    centres = torch.tensor([[0.0, 0.0, 9.0], [5.0, 4.0, 0.0], [10.0, 9.0, 5.0]])
    x = centres[y] + torch.randn(count, D, generator=generator)
    gaps = torch.rand(count, D, generator=generator) < share
    gaps[gaps.all(1)] = False
    return x.masked_fill(gaps, torch.nan), y


def flows(guide: Any = "network") -> VMoNF:
    with local_seed(0):
        guide = SoftmaxGuide(MLP(D, K, hidden=(8,))) if guide == "network" else guide
        return VMoNF(FlowMixture(RealNVP(D, K, blocks=2, hidden=(8,)), "learned"), guide)


def gaussians() -> VMoNF:
    with local_seed(0):
        return VMoNF(FlowMixture(Gaussian(D, K), "learned"), ExactGuide()).double()


def test_all_columns_and_none() -> None:
    for pair in (flows(), gaussians()):
        x, _ = blobs()
        pair.model.standardize_(x)
        whole = x[~x.isnan().any(1)]
        found = pair.partial_log_prob(whole)
        assert torch.equal(found.log_prob, pair.log_prob(whole))
        assert (found.error == 0).all()
        nothing = torch.full((2, D), torch.nan)
        torch.testing.assert_close(pair.log_prob(nothing).float(), torch.zeros(2))
        weights = pair.model.weights.log_mean().exp().expand(2, K)
        torch.testing.assert_close(pair.predict_proba(nothing), weights)


def test_the_posterior_of_a_row_with_gaps_is_bayes_rule() -> None:
    pair = gaussians()
    x, _ = blobs()
    joint = pair.model.weights.log_mean() + pair.component_log_prob(x)
    torch.testing.assert_close(pair.predict_proba(x), joint.softmax(-1).detach())
    torch.testing.assert_close(pair.elbo(x), pair.log_prob(x))
    network = flows()
    gaps = x.isnan().any(1)
    guided, exact = network.predict_proba(x), network.predict_proba(x, exact=True)
    torch.testing.assert_close(guided[gaps], exact[gaps], rtol=0, atol=0.15)  # draws of 64
    assert not torch.allclose(guided[~gaps], exact[~gaps], atol=0.15)
    assert torch.equal(network.predict_proba(x[~gaps]), guided[~gaps])


class Plain(pyro.nn.PyroModule):
    """A guide that is no part of the library."""

    def __init__(self) -> None:
        super().__init__()
        self.network = torch.nn.Linear(D, K)

    def log_q(self, x: Tensor) -> Tensor:
        assert not x.isnan().any()
        return self.network(x).log_softmax(-1)

    def forward(self, x: Tensor, index: Tensor | None = None, size: int | None = None) -> None:
        with pyro.plate("data", size or len(x), subsample=index):
            q = pyro.distributions.Categorical(logits=self.log_q(x))
            pyro.sample("c", q, infer={"enumerate": "parallel"})


class Bound(BoundGuide):
    """A guide on the base of the library, with a posterior of its own."""

    def log_q(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        return Plain.log_q(self, x)  # type: ignore[arg-type]

    def network(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("guide", [Plain, Bound])
def test_a_guide_of_ones_own_is_asked_about_no_gap(guide: Any) -> None:
    x, y = blobs()
    pair = VMoNF(gaussians().model, guide()).double()
    gaps = x.isnan().any(1)
    found, exact = pair.predict_proba(x), pair.predict_proba(x, exact=True)
    torch.testing.assert_close(found[gaps], exact[gaps], rtol=0, atol=0)
    torch.testing.assert_close(found[~gaps], pair.predict_proba(x[~gaps]), rtol=0, atol=1e-12)
    assert not torch.allclose(found[~gaps], exact[~gaps], atol=0.1)
    torch.testing.assert_close(pair.elbo(x)[gaps], pair.log_prob(x)[gaps], rtol=0, atol=1e-12)
    assert (pair.elbo(x) <= pair.log_prob(x) + 1e-12).all()
    assert torch.equal(pair.predict(x, y), y)


def test_the_mean_of_imputed_rows_is_that_of_the_mixture_conditional() -> None:
    pair = gaussians()
    row = torch.tensor([[0.5, torch.nan, torch.nan]]).double()
    mean = pair.impute(row)
    draws = pair.impute(row, draws=20_000, seed=0).x[:, 0]
    assert mean.effective.tolist() == [1.0]
    assert (draws[:, 0] == 0.5).all()
    error = draws.std(0) / 20_000**0.5
    assert ((draws.mean(0) - mean.x[0]).abs() <= 4 * error).all()
    again = pair.impute(row, draws=20_000, seed=0).x[:, 0]
    assert torch.equal(draws, again)


def test_the_global_generator_stays() -> None:
    x, _ = blobs()
    pair, before = flows(), torch.get_rng_state()
    first = pair.log_prob(x), pair.predict_proba(x), pair.elbo(x), pair.impute(x).x
    second = pair.log_prob(x), pair.predict_proba(x), pair.elbo(x), pair.impute(x).x
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), before)
    assert not first[-1].isnan().any()


def test_few_effective_draws_are_named() -> None:
    bank = RealNVP(D, 1, blocks=6)
    with local_seed(0), torch.no_grad():
        for parameter in bank.parameters():
            parameter.normal_()
    with pytest.warns(RuntimeWarning, match=r"rows with missing entries rest on less than .*draws"):
        VMoNF(FlowMixture(bank)).partial_log_prob(blobs()[0] / 5)


VERBS = [
    "predict",
    "predict_proba",
    "component_log_prob",
    "log_prob",
    "elbo",
    "posterior",
    "impute",
]


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_names_few_effective_draws(verb: str) -> None:
    bank = RealNVP(D, 2, blocks=6)
    with local_seed(0), torch.no_grad():
        for parameter in bank.parameters():
            parameter.normal_()
    x = blobs()[0] / 5
    with pytest.warns(RuntimeWarning, match=r"of 42 rows with missing entries rest on less than"):
        getattr(VMoNF(FlowMixture(bank), SoftmaxGuide(MLP(D, 2))), verb)(x)
    getattr(gaussians(), verb)(x)  # exact, without a word


def test_one_draw_knows_no_error() -> None:
    x = blobs()[0]
    gaps = x.isnan().any(1)
    with pytest.warns(RuntimeWarning, match="effective draws of 1 importance"):
        found = flows().partial_log_prob(x, draws=1)
    assert torch.equal(found.error.isinf(), gaps)
    assert not gaussians().partial_log_prob(x, draws=1).error.any()


PAIRS: dict[str, tuple[Any, dict[str, Any]]] = {
    "network": ("network", {}),
    "two components a row": (SoftmaxGuide(MLP(D, K), top=2), {}),
    "terms": (SoftmaxGuide(MLP(D, K), [Balance(), Consistency(lambda b: b.x + 0.1)]), {}),
    "exact": (ExactGuide(), {}),
    "none": (None, {}),
    "held out": ("network", {"held_out": 0.2, "patience": 2}),
    "starts": ("network", {"n_init": 2}),
    "compiled": ("network", {"compile": True}),
    "weights": ("network", {"sample_weight": torch.arange(90.0)}),
    "labels": ("network", {"y": torch.where(torch.arange(90) < 30, torch.arange(90) % K, -1)}),
    "another loss": (None, {"loss": ImportanceWeightedELBO(2)}),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_no_fit_reads_a_gap_into_a_parameter(kind: str) -> None:
    guide, options = PAIRS[kind]
    pair, (x, _) = flows(guide), blobs()
    history = pair.fit(x, epochs=3, batch_size=45, **QUIET, **options)
    assert history.rejected == 0
    assert all(v.isfinite().all() for v in pair.state_dict().values() if v.is_floating_point())
    assert pair.model.incomplete is None
    if not options.keys() & {"held_out", "n_init", "sample_weight"}:
        torch.testing.assert_close(pair.model.standardizer.loc, x.nanmean(0))
    assert pair.log_prob(x).isfinite().all()


def test_gaussians_are_fitted_to_the_exact_likelihood() -> None:
    """The objective is the likelihood of the entries that are there, and SVI has the same."""
    pair, (x, _) = gaussians(), blobs()
    before = pair.model.standardize_(x), pair.log_prob(x).mean()
    history = pair.fit(x, epochs=40, batch_size=90, lr=0.05, **QUIET)
    assert history.road == "short"
    assert pair.log_prob(x).mean() > before[1] + 0.5
    pair.eval()  # or the weights would learn from the rows
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(pair.model, pair.guide, x.double())
    assert -loss == pytest.approx(float(pair.log_prob(x.double()).sum()), abs=1e-6)


def test_the_site_of_the_program_has_the_density_of_what_is_there() -> None:
    pair, (x, _) = gaussians(), blobs()
    x = x.double()
    trace = pyro.poutine.trace(pyro.poutine.condition(pair.model, {"c": torch.zeros(90).long()}))
    found = trace.get_trace(x)
    found.compute_log_prob()
    expected = pair.component_log_prob(x)[:, 0]
    torch.testing.assert_close(found.nodes["x"]["log_prob"].detach(), expected)


def test_plain_svi_trains_flows_on_rows_with_gaps() -> None:
    pair, (x, _) = flows(), blobs()
    pair.model.standardize_(x)
    svi = SVI(
        pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-2}), TraceEnum_ELBO(max_plate_nesting=1)
    )
    with local_seed(0):
        losses = [svi.step(x) for _ in range(40)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 10


def test_the_bound_of_a_fit_is_below_the_likelihood() -> None:
    pair, (x, _) = flows(ExactGuide()), blobs(45)
    pair.model.standardize_(x)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    with local_seed(0), torch.no_grad():
        losses = torch.tensor([-elbo.loss(pair.model, pair.guide, x) for _ in range(40)])
    found = pair.partial_log_prob(x, draws=1000)
    slack = 4 * float(losses.std() / 40**0.5 + found.error.square().sum().sqrt())
    assert losses.mean() < found.log_prob.sum() + slack
    assert losses.mean() > found.log_prob.sum() - 0.1 * len(x)


def test_resumed_and_saved_pairs_are_the_same(tmp_path: Path) -> None:
    x, _ = blobs()
    whole, other = flows(), flows()
    whole.fit(x, epochs=4, checkpoint=tmp_path / "run.pt", **QUIET)
    other.fit(x, epochs=4, resume=tmp_path / "run.pt", **QUIET)
    assert torch.equal(other.log_prob(x), whole.log_prob(x))
    with pytest.raises(ValueError, match="sum of x"):
        other.fit(x.nan_to_num(1.0), epochs=4, resume=tmp_path / "run.pt", **QUIET)
    whole.save(tmp_path / "pair.pt")
    loaded = VMoNF.load(tmp_path / "pair.pt")
    assert torch.equal(loaded.log_prob(x), whole.log_prob(x))
    assert torch.equal(loaded.impute(x, draws=2).x, whole.impute(x, draws=2).x)


@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
@pytest.mark.filterwarnings("ignore:.*rest on less than")
def test_from_data_finds_blobs_with_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start finds them, with or without the training that time leaves."""
    monkeypatch.setattr(automatic, "BLOCKS", 1)
    monkeypatch.setattr(automatic, "HIDDEN", (8,))
    scores = []
    for seed in range(3):
        x, y = blobs(60, seed)
        pair = VMoNF.from_data(x, components=K, seed=seed, minutes=1e-6, progress=False)
        scores.append(adjusted_rand_score(y, pair.predict(x)))
        gaps = x.isnan()
        said = f"{int(gaps.sum())} entries are missing, in {int(gaps.any(1).sum())} rows"
        assert said in str(pair.report())
        assert not pair.impute(x).x.isnan().any()
    assert np.mean(scores) > 0.95, scores


@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
def test_the_estimator_takes_gaps() -> None:
    x, y = blobs(60)
    by_data = FlowMixtureClustering(K, minutes=1e-6, random_state=0).fit(x.numpy())
    by_hand = FlowMixtureClustering(K, flow="gaussian", max_iter=20, random_state=0).fit(x.numpy())
    for estimator in (by_data, by_hand):
        assert adjusted_rand_score(y, estimator.labels_) > 0.95
        assert np.isfinite(estimator.score(x.numpy()))
    with pytest.raises(ValueError, match="infinity"):
        by_hand.predict(np.full((2, D), np.inf))


def test_a_context_goes_with_its_rows() -> None:
    from pyro_vmonf import NSF

    bank = NSF(2, 2, blocks=1, context_features=1)
    pair = VMoNF(FlowMixture(bank, LearnedWeights(2), context_features=1), None)
    x, given = torch.randn(6, 2), torch.randn(6, 1)
    x[:3, 1] = torch.nan
    whole = pair.partial_log_prob(x, given=given)
    alone = torch.cat([pair.log_prob(x[i : i + 1], given=given[i : i + 1]) for i in (1, 5)])
    torch.testing.assert_close(whole.log_prob[[1, 5]], alone, rtol=0, atol=1e-5)
    pair.fit(x, given=given, epochs=1, **QUIET)
    assert pair.impute(x, given=given, draws=2).x.shape == (2, 6, 2)


@pytest.mark.parametrize("bank", ["flow", "gated", "list"])
def test_the_elbo_of_rows_with_gaps_and_a_context_is_that_of_each_row(bank: str) -> None:
    banks: dict[str, Any] = {
        "flow": lambda: RealNVP(2, 3, blocks=1, context_features=1),
        "gated": lambda: RealNVP(2, 3, blocks=1),
        "list": lambda: [RealNVP(2, 1, blocks=1, context_features=1), Gaussian(2, 2)],
    }
    weights = GatedWeights(MLP(1, 3), 3) if bank == "gated" else "uniform"
    model = FlowMixture(banks[bank](), weights, context_features=1)
    vmonf = VMoNF(model, SoftmaxGuide(MLP(3, 3)))
    x = torch.tensor([[0.1, 0.2], [0.3, torch.nan], [torch.nan, 0.4]])
    given = torch.randn(3, 1)
    found = vmonf.elbo(x, given=given)
    whole = vmonf.elbo(x[:1], given=given[:1])
    torch.testing.assert_close(found[:1], whole)
    q, joint = vmonf.predict_proba(x, given=given), vmonf.component_log_prob(x, given=given)
    prior = model.weights.log_mean(given)
    expected = (q * (joint + prior - q.log())).sum(-1)
    torch.testing.assert_close(found, expected.detach(), atol=0.05, rtol=0.02)


def test_gaps_are_refused_where_none_can_be() -> None:
    from pyro_vmonf import Glow

    x, _ = blobs()
    with pytest.raises(ValueError, match="NaN or infinite"):
        flows().report(x)
    images = VMoNF(FlowMixture(Glow((1, 4, 4), 2, blocks=1, channels=4)))
    with pytest.raises(ValueError, match="NaN or infinite"):
        images.log_prob(torch.full((2, 1, 4, 4), torch.nan))
    loader = torch.utils.data.DataLoader(x, batch_size=30)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN or infinite"):
        flows().fit(loader, epochs=1, **QUIET)


def test_a_hot_deck_keeps_whole_rows_and_takes_values_of_near_ones() -> None:
    x, y = blobs(300)
    filled = hot_deck(x.numpy())
    gaps = x.isnan().numpy()
    assert (filled[~gaps] == x.numpy()[~gaps]).all()
    for column in range(D):
        assert np.isin(filled[gaps[:, column], column], x[:, column].numpy()).all()
    own = np.array([filled[y == c].std(0) for c in range(K)])
    assert (own < 1.6).all()  # clusters stay together


def test_a_network_that_saw_few_rows_is_named() -> None:
    x, _ = blobs(share=0.0)
    x[torch.arange(90), torch.arange(90) // 3 % 3] = torch.nan
    with pytest.warns(RuntimeWarning, match="saw 0 of 90 rows"):
        flows().fit(x, epochs=1, **QUIET)


def test_resume_refuses_gaps_that_were_filled_or_moved(tmp_path: Path) -> None:
    x = blobs()[0]
    options: dict[str, Any] = {"epochs": 2, "every": 1, "seed": 0, "progress": False}
    VMoNF(FlowMixture(Gaussian(D, K)), ExactGuide()).fit(x, checkpoint=tmp_path / "c", **options)
    moved = x.clone()
    (row, column), (other, place) = x.isnan().nonzero()[0], (~x.isnan()).nonzero()[0]
    moved[row, column], moved[other, place] = x[other, place], torch.nan
    for changed in (x.nan_to_num(0.0), moved):
        fresh = VMoNF(FlowMixture(Gaussian(D, K)), ExactGuide())
        with pytest.raises(ValueError, match="resume"):
            fresh.fit(changed, resume=tmp_path / "c", **options)


def test_rows_beyond_every_density_are_filled_by_the_weights() -> None:
    rows = torch.tensor([[1e20, torch.nan], [0.0, torch.nan]])
    exact = VMoNF(FlowMixture(Gaussian(2, 2)))
    assert exact.impute(rows).x[:, 1].isfinite().all()
    assert exact.impute(rows, draws=3).x[:, :, 1].isfinite().all()
    with local_seed(0), pytest.warns(RuntimeWarning, match="1 of 2 rows with missing entries"):
        assert (
            VMoNF(FlowMixture(RealNVP(2, 2, blocks=2))).partial_log_prob(rows).log_prob[0]
            == -torch.inf
        )


def test_columns_are_judged_by_the_rows_that_count() -> None:
    x = torch.randn(40, 2)
    x[10:, 0] = torch.nan
    weight = torch.ones(40)
    weight[:10] = 0
    with pytest.raises(ValueError, match="column 0 of x has no entry in the rows that count"):
        VMoNF(FlowMixture(Gaussian(2, 2)), ExactGuide()).fit(x, sample_weight=weight, **QUIET)
    with pytest.raises(ValueError, match="column 0 of x has no entry in the rows that count"):
        VMoNF.from_data(x, sample_weight=weight, components=2, seed=0)
