"""Answers that a second reader found wrong; each was computed in another way."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import AffineTransform, Independent, Normal

from pyro_vmonf import (
    FlowMixture,
    Gaussian,
    MarkovMixture,
    MarkovVMoNF,
    RandomWeights,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf.components import take_components_
from pyro_vmonf.distributions import FlowDistribution
from pyro_vmonf.em import fit_em, num_parameters
from pyro_vmonf.guides import BoundGuide
from pyro_vmonf.interop.delimited import read_delimited
from pyro_vmonf.interop.page import _clusters
from pyro_vmonf.interop.serving import from_safetensors_, to_safetensors
from pyro_vmonf.interop.sklearn import FlowMixtureClustering
from pyro_vmonf.interop.tables import Table, read_table, samples
from pyro_vmonf.metrics import kl_divergence
from pyro_vmonf.nn import MLP
from pyro_vmonf.vmonf.table import rows_of
from pyro_vmonf.weight_priors import NormalPosterior, SticksPosterior
from pyro_vmonf.weights import GammaDirichlet, GroupWeights

K = 3
X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
X = X + 8 * (torch.arange(180) // 60 - 1)[:, None]


def pair(weights: Any = "uniform", guide: Any = None) -> VMoNF:
    """Return a pair whose Gaussians are the three clusters of ``X``."""
    vmonf = VMoNF(FlowMixture(Gaussian(2, K), weights), guide)
    loc = torch.tensor([[-8.0, -8.0], [0.0, 0.0], [8.0, 8.0]])
    vmonf.model.bank.set_(loc, torch.eye(2).expand(K, 2, 2))  # type: ignore[operator]
    return vmonf


# Components that change places


class Mine(BoundGuide):
    """A guide that does not say how its components lie in its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, K)

    def log_q(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        return self.net(x).log_softmax(-1)

    def infer(self, rows: Any) -> None:
        with rows.plate(self.site("data"), (2,)):
            logits = self.log_q(rows.x)
            pyro.sample("c", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def sticks() -> RandomWeights:
    prior = dist.Dirichlet(torch.ones(K))
    return RandomWeights(prior, SticksPosterior(prior))


def normal() -> RandomWeights:
    prior = dist.Dirichlet(torch.ones(K))
    return RandomWeights(prior, NormalPosterior(prior))


REFUSED: dict[str, Callable[[], VMoNF]] = {
    "a guide of one's own": lambda: pair(guide=Mine()),
    "a Pyro guide": lambda: pair(
        dist.Dirichlet(torch.ones(K)),
        [SoftmaxGuide(MLP(2, K)), lambda x: pyro.sample("weights", dist.Dirichlet(torch.ones(K)))],
    ),
    "sticks": lambda: pair(sticks()),
    "a normal behind sticks": lambda: pair(normal()),
}


@pytest.mark.parametrize("index", [[2, 0, 1], [0, 1]], ids=["turned", "fewer"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_pair_that_cannot_be_turned_is_as_it_was(kind: str, index: list[int]) -> None:
    vmonf = REFUSED[kind]()
    before = {name: value.clone() for name, value in vmonf.state_dict().items()}
    with pytest.raises(ValueError, match="taken out or change places"):
        take_components_(vmonf, torch.tensor(index))
    after = vmonf.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


@pytest.mark.parametrize("index", [[2, 0, 1], [0, 2]], ids=["turned", "fewer"])
def test_a_random_concentration_belongs_to_all_components(index: list[int]) -> None:
    vmonf = pair(RandomWeights(GammaDirichlet(K)))
    posterior = vmonf.model.weights.posterior
    posterior.log_concentration.data = torch.tensor([0.0, 1.0, 2.0])  # type: ignore[union-attr]
    before = vmonf.model.weights.log_mean().exp()
    joint = vmonf.component_log_prob(X)
    take_components_(vmonf, torch.tensor(index))
    torch.testing.assert_close(vmonf.component_log_prob(X), joint[:, index])
    wanted = before[index] / before[index].sum()
    torch.testing.assert_close(vmonf.model.weights.log_mean().exp(), wanted)


@pytest.mark.parametrize("groups", [2, K])
def test_weights_of_groups_turn_by_component(groups: int) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, K), GroupWeights(groups, K), context_features=1))
    vmonf.model.weights.logits.data = torch.randn(groups, K)  # type: ignore[union-attr]
    given = torch.zeros(len(X), 1)
    before = vmonf.log_prob(X, given=given)
    take_components_(vmonf, torch.tensor([2, 0, 1]))
    torch.testing.assert_close(vmonf.log_prob(X, given=given), before)


def test_a_pair_that_shares_its_components_leaves_them() -> None:
    prior = torch.tensor([1.0, 2.0, 9.0])
    whole = pair(dist.Dirichlet(prior))
    chain = MarkovVMoNF(MarkovMixture(Gaussian(2, K)))
    for origin, part in (
        (whole, whole.condition({"weights": prior / 12})),
        (chain, chain.alone()),
    ):
        before = {name: value.clone() for name, value in origin.state_dict().items()}
        for act in (lambda p=part: p.align_((p.predict(X) + 1) % K, X), lambda p=part: p.prune_(X)):
            with pytest.raises(ValueError, match="shares its components"):
                act()
        for name, value in origin.state_dict().items():
            assert torch.equal(value, before[name]), name
        own = copy.deepcopy(part)
        scores = own.log_prob(X)
        own.align_((own.predict(X) + 1) % K, X)
        torch.testing.assert_close(own.log_prob(X), scores)
    del part, own
    whole.align_((whole.predict(X) + 1) % K, X)  # nobody shares them any more


def test_a_background_that_is_pruned_is_no_cluster() -> None:
    draw = np.random.default_rng(0)
    x = np.concatenate((draw.normal(size=(100, 2)), draw.normal(size=(100, 2)) + 8))
    found = FlowMixtureClustering(2, background=True, minutes=0.01, random_state=0).fit(x)
    assert set(found.predict(x)) == {0, 1}
    found.vmonf_.prune_(x)
    assert set(found.predict(x)) == {0, 1}
    assert "background" not in str(found.vmonf_.report())


# Runs that go on


def clusters() -> tuple[Tensor, Tensor]:
    x = torch.cat((torch.randn(100, 2), torch.randn(100, 2) + 6))
    return x, torch.where(torch.arange(200) % 10 == 0, torch.arange(200) // 100, -1)


def flipped(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return x, torch.where(y >= 0, 1 - y, y)


def moved(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where((y >= 0)[:, None], x + 100, x), y


def moved_held_out(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where((torch.arange(200) >= 180)[:, None], x + 50, x), y


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (flipped, {"interleave": True}),
        (moved, {"interleave": True}),
        (moved_held_out, {"held_out": torch.arange(180, 200), "standardize": False}),
    ],
)
def test_other_labels_and_held_out_rows_are_not_gone_on_with(
    change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    x, y = clusters()
    path = tmp_path / "run.pt"
    whole = dict(
        epochs=4, seed=0, progress=False, checkpoint=path, resume=path, batch_size=50, **options
    )

    def new() -> VMoNF:
        torch.manual_seed(1)
        return VMoNF(FlowMixture(Gaussian(2, 2), "learned"), SoftmaxGuide(MLP(2, 2)))

    def stop(progress: Any) -> None:
        if progress.epoch == 1:
            raise KeyError

    with pytest.raises(KeyError):
        new().fit(x, y, callbacks=[stop], **whole)
    with pytest.raises(ValueError, match="the checkpoint is of a run with"):
        new().fit(*change(x, y), **whole)
    assert new().fit(x, y, **whole).epoch == list(range(4))


# Tables in files


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
    vmonf = pair()
    vmonf.model.feature_names = ("x", "cluster")
    found = samples(vmonf, 5, seed=0)
    assert list(found.columns) == ["x", "cluster", "cluster_of_pair"]
    np.testing.assert_array_equal(found[["x", "cluster"]], vmonf.sample(5, seed=0)[0].numpy())


def test_safetensors_keep_the_names_of_columns(tmp_path: Path) -> None:
    frame = pd.DataFrame(X.numpy() * [1.0, 0.1], columns=["a", "b"])
    one, other = pair(), pair()
    one.fit(frame, epochs=1, progress=False, seed=0)
    to_safetensors(one, tmp_path / "pair.safetensors")
    from_safetensors_(other, tmp_path / "pair.safetensors")
    assert torch.equal(other.log_prob(frame[["b", "a"]]), one.log_prob(frame))
    third = pair()
    third.fit(X, epochs=1, progress=False, seed=0)
    to_safetensors(third, tmp_path / "plain.safetensors")
    from_safetensors_(other, tmp_path / "plain.safetensors")
    assert other.model.feature_names is None


# Digits and labels


@pytest.mark.filterwarnings("ignore:column 0 holds whole numbers")
@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
def test_whole_numbers_keep_their_digits() -> None:
    draw = np.random.default_rng(0)
    x = np.c_[np.repeat([0, 1], 100) * 90 + draw.normal(0, 12, 200), draw.normal(0, 1e5, 200)]
    x = (x + 1.7e9).round().astype(np.int64)
    options: dict[str, Any] = {"components": 2, "seed": 0, "minutes": 1e-6, "progress": False}
    whole, real = (VMoNF.from_data(rows, **options) for rows in (x, x.astype(float)))
    x = x.astype(float)
    np.testing.assert_allclose(whole.log_prob(x), real.log_prob(x), atol=1e-4)
    gappy = X.clone()
    gappy[0, 0] = torch.nan
    assert rows_of(gappy, None, None, None, 0).x.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
def test_labels_that_do_not_begin_at_zero_are_named() -> None:
    draw = np.random.default_rng(0)
    y = np.repeat([1, 2], 30)
    x = draw.normal(size=(60, 2)) + 8 * y[:, None]
    with pytest.warns(UserWarning, match="labels go from 1 to 2, and no row has label 0"):
        VMoNF.from_data(x, y, components=3, seed=0, minutes=0.001, progress=False)


@pytest.mark.parametrize("offset", [0.0, 1e6, 1.7e9])
def test_moments_far_from_zero_keep_their_digits(offset: float) -> None:
    x = torch.cat((torch.randn(200, 1), torch.randn(200, 1) + 6)).double() + offset
    model = FlowMixture(Gaussian(1, 2), "learned")
    fit_em(model, x, seed=0)
    marginal = VMoNF(model.requires_grad_(False)).marginal()
    assert float(marginal.variance) == pytest.approx(float(x.var(correction=0)), rel=1e-3)
    assert float(marginal.mean) - offset == pytest.approx(float(x.mean()) - offset, abs=1e-2)


def test_quantiles_run_in_inference_mode() -> None:
    marginal = FlowMixture(Gaussian(1, 2)).marginal()
    x = torch.randn(5, 1)
    with torch.inference_mode():
        assert marginal.cdf(x).shape == (5,)


@pytest.mark.parametrize("scale", [30.0, -30.0])
def test_a_map_rises_where_its_slope_does(scale: float) -> None:
    base = Independent(Normal(torch.zeros(1), 1.0), 1)
    far = FlowDistribution(base, [AffineTransform(1.7e9, scale)])
    assert far.cdf(torch.tensor([1.7e9 - 2560])) == 0
    assert far.cdf(torch.tensor([1.7e9 + 2560])) == 1
    near = FlowDistribution(base, [AffineTransform(2.0, scale)])
    x = torch.linspace(-50, 50, 5).unsqueeze(-1)
    exact = Normal(2.0, 30.0).cdf(x.squeeze(-1))
    torch.testing.assert_close(near.cdf(x), exact, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(near.icdf(exact), x, atol=1e-4, rtol=1e-4)


def test_quantiles_at_the_ends_are_those_of_the_support() -> None:
    marginal = VMoNF(FlowMixture(Gaussian(1, 2))).marginal()
    found = marginal.icdf(torch.tensor([0.0, 0.5, 1.0])).squeeze(-1)
    assert found[0] == -torch.inf
    assert found[2] == torch.inf
    assert found[1].isfinite()


# Numbers of parameters, estimates


def test_the_free_weights_of_chains_and_groups_are_counted() -> None:
    gaussians = K * (2 + 3)
    rows = K * (K - 1)
    chain = MarkovMixture(Gaussian(2, K), "learned", "learned")
    assert num_parameters(chain) == gaussians + K - 1 + rows
    assert num_parameters(MarkovMixture(Gaussian(2, K), "uniform", "learned")) == gaussians + rows
    groups = FlowMixture(Gaussian(2, K), GroupWeights(4, K), context_features=1)
    assert num_parameters(groups) == gaussians + 4 * (K - 1)


def test_one_gaussian_starts_at_the_moments() -> None:
    draw = np.random.default_rng(0)
    x = np.concatenate((draw.normal(size=(60, 2)), draw.normal(size=(60, 2)) + 7))
    found = FlowMixtureClustering(1, flow="gaussian", random_state=0).fit(x)
    assert found.score(x) == pytest.approx(GaussianMixture(1).fit(x).score(x), abs=0.01)


def test_very_small_weights_are_weights() -> None:
    options: dict[str, Any] = {"flow": "gaussian", "random_state": 0, "max_iter": 1}
    x = X.numpy()
    one = FlowMixtureClustering(3, **options).fit(x, sample_weight=np.ones(len(x)))
    small = FlowMixtureClustering(3, **options)
    with pytest.warns(UserWarning, match="divide sample_weight by its mean"):
        small.fit(x, sample_weight=np.full(len(x), 1e-20))
    assert one.score(x) == pytest.approx(small.score(x), abs=0.1)


@pytest.mark.parametrize("seed", [None, 2**40, -1])
@pytest.mark.filterwarnings("ignore:a Gaussian mixture does as well")
def test_every_seed_and_none_at_all_is_a_seed(seed: int | None) -> None:
    vmonf = VMoNF.from_data(X, components=3, seed=seed, minutes=1e-6, progress=False)
    assert VMoNF.from_data(X, seed=seed, minutes=1e-6, progress=False).predict(X).shape == (180,)
    assert vmonf.predict(X).unique().tolist() == [0, 1, 2]


def test_probabilities_of_low_precision_are_taken() -> None:
    x = X.to(torch.bfloat16)
    vmonf = VMoNF(FlowMixture(Gaussian(2, K)), SoftmaxGuide(torch.nn.Linear(2, K)))
    assert vmonf.to(torch.bfloat16).predict_proba(x).shape == (180, K)


def test_a_distribution_needs_nothing_but_draws_and_scores_for_a_divergence() -> None:
    class Plain(torch.distributions.Distribution):
        def __init__(self) -> None:
            super().__init__(event_shape=torch.Size((2,)), validate_args=False)

        def sample(self, sample_shape: Any = ()) -> Tensor:
            return torch.randn(*sample_shape, 2)

        def log_prob(self, value: Tensor) -> Tensor:
            return Normal(0.0, 1.0).log_prob(value).sum(-1)

    found, _ = kl_divergence(Plain(), FlowMixture(Gaussian(2, 2)).marginal(), draws=10, seed=0)
    assert found.isfinite()


def test_a_divergence_has_the_batch_of_both() -> None:
    q = Normal(torch.tensor([0.0, 1.0, 2.0]), 1.0)
    for draws in (3, 1000):
        found, error = kl_divergence(Normal(0.0, 1.0), q, draws=draws, seed=0)
        assert found.shape == (3,)
        assert ((found - torch.tensor([0.0, 0.5, 2.0])).abs() <= 5 * error + 1e-6).all()


def test_single_steps_of_a_chain_have_gaps_that_are_summed_out() -> None:
    chain = MarkovVMoNF(MarkovMixture(Gaussian(2, K)))
    chain.model.bank.loc.data = torch.randn(K, 2)  # type: ignore[union-attr]
    x = torch.tensor([[0.5, torch.nan]])
    alone = chain.alone()
    found = alone.partial_log_prob(x)
    assert (found.error == 0).all()
    each = Normal(chain.model.bank.loc[:, 0], 1.0).log_prob(torch.tensor(0.5))  # type: ignore[index]
    exact = (alone.model.weights.log_mean() + each).logsumexp(-1)
    torch.testing.assert_close(alone.log_prob(x), exact[None], atol=1e-6, rtol=1e-6)


def test_means_of_clusters_are_those_of_the_numbers_that_are_there() -> None:
    frame = pd.DataFrame({"a": [1.0, np.nan, 5.0, 7.0], "b": [np.nan, np.nan, 2.0, 4.0]})
    clusters = torch.tensor([0, 0, 1, 1])
    table = Table(frame, 4, np.arange(4))
    found = re.sub(r"<[^>]+>", " ", _clusters(table, torch.eye(2)[clusters], clusters)).split()
    assert "nan" not in found
    assert found[found.index("a") + 1 :][:2] == ["1", "6"]
    assert found[found.index("b") + 1 :][:2] == ["–", "3"]
