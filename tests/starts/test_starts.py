"""Starting points that look at the data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch

from pyro_vmonf import ExactGuide, FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.neighbors import nearest_neighbors
from pyro_vmonf.datasets import pinwheel, two_circles
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts import pretrain_, spectral_clusters, warm_start_
from pyro_vmonf.starts.reseeding import split_in_two


@pytest.mark.parametrize("features", [1, 3, 40])
def test_neighbours_are_those_of_all_distances(features: int) -> None:
    x = torch.randn(50, features, dtype=torch.float64) * torch.logspace(-1, 1, features)
    units = x / x.std(0)
    distances = (units[:, None] - units).norm(dim=-1).fill_diagonal_(torch.inf)
    assert torch.equal(nearest_neighbors(x, 5), distances.argsort(1)[:, :5])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_neighbours_of_rows_of_any_shape_and_type(dtype: torch.dtype) -> None:
    x = torch.tensor([[[0, 0], [1, 2]], [[0, 1], [1, 2]], [[8, 8], [9, 9]]], dtype=dtype)
    assert nearest_neighbors(x, 1).tolist() == [[1], [0], [1]]


def test_a_row_is_not_its_own_neighbour_even_among_equals() -> None:
    near = nearest_neighbors(torch.zeros(60, 2), 3)
    assert (near != torch.arange(60)[:, None]).all()
    pairs = torch.arange(4.0).repeat_interleave(2).unsqueeze(1)
    assert nearest_neighbors(pairs, 1).squeeze(1).tolist() == [1, 0, 3, 2, 5, 4, 7, 6]


@pytest.mark.parametrize("seed", range(5))
def test_circles_are_found_without_labels(seed: int) -> None:
    x, circle = two_circles(per_circle=256, noise=0.04, seed=seed)
    assert accuracy(circle, spectral_clusters(x, 2)) >= 0.99


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_parts_that_nothing_links_are_the_clusters(parts: int) -> None:
    x = torch.cat([torch.randn(40, 2) + 100 * i for i in range(parts)])
    truth = torch.arange(parts).repeat_interleave(40)
    clusters = spectral_clusters(x, parts)
    assert accuracy(truth, clusters) == 1.0
    order = torch.randperm(len(x))
    assert accuracy(clusters[order], spectral_clusters(x[order], parts)) == 1.0


@pytest.mark.parametrize("clusters", [2, 3, 4])
def test_parts_stay_whole_where_there_are_more_of_them(clusters: int) -> None:
    x = torch.cat([torch.randn(40, 2) + 100 * i for i in range(20)])
    found = spectral_clusters(x, clusters)
    assert found.unique().tolist() == list(range(clusters))
    assert (found.reshape(20, 40) == found[::40, None]).all()


def test_equal_rows_and_a_cluster_for_each_row() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat_interleave(30, 0)
    assert accuracy(torch.arange(60) // 30, spectral_clusters(x, 2)) == 1.0
    few = torch.randn(6, 2)
    assert sorted(spectral_clusters(few, 6, neighbors=3).tolist()) == list(range(6))
    assert spectral_clusters(torch.zeros(40, 2), 3).shape == (40,)


def test_a_result_is_a_function_of_the_data() -> None:
    x, _ = pinwheel(wings=3, per_wing=100, seed=0)
    before = torch.get_rng_state()
    assert torch.equal(spectral_clusters(x, 3), spectral_clusters(x, 3))
    assert torch.equal(torch.get_rng_state(), before)
    assert spectral_clusters(x, 1).unique().tolist() == [0]


def test_halves_are_a_function_of_the_rows_and_equal_rows_stay_together() -> None:
    x = torch.cat((torch.randn(30, 2, 2), torch.randn(10, 2, 2) + 30))
    half = split_in_two(x)
    assert sorted(half.bincount().tolist()) == [10, 30]
    assert torch.equal(split_in_two(x), half)
    assert split_in_two(torch.full((9, 3), 0.1)).tolist() == [0] * 9


def test_a_warm_guide_knows_the_clusters_and_no_flow_moved() -> None:
    x, circle = two_circles(per_circle=256, seed=0)
    vmonf = VMoNF(FlowMixture(RealNVP(2, 2, blocks=2)), SoftmaxGuide(MLP(2, 2)))
    flows = {k: v.clone() for k, v in vmonf.model.bank.state_dict().items()}
    warm_start_(vmonf.guide, x, seed=0)
    assert accuracy(circle, vmonf.predict(x)) > 0.98
    assert all(torch.equal(v, flows[k]) for k, v in vmonf.model.bank.state_dict().items())
    torch.testing.assert_close(vmonf.model.standardizer.loc, x.mean(0))


class Lines(pyro.nn.PyroModule):
    """A guide that is no part of the library."""

    def __init__(self, model: FlowMixture | None = None) -> None:
        super().__init__()
        self.network, self.within = torch.nn.Linear(1, 2), model

    def log_q(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).log_softmax(-1)

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = pyro.distributions.Categorical(logits=self.log_q(x))
            pyro.sample("c", q, infer={"enumerate": "parallel"})


WARM: dict[str, Callable[[FlowMixture], Any]] = {
    "own module": lambda model: Lines(),
    "own module that holds the model": Lines,
    "list with an own module": lambda model: [lambda: None, Lines()],
    "list with a network": lambda model: [SoftmaxGuide(torch.nn.Linear(1, 2)), lambda: None],
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", WARM)
def test_the_member_with_a_log_q_is_taught(name: str) -> None:
    model = FlowMixture(Gaussian(1, 2))
    vmonf = VMoNF(model, WARM[name](model))
    x = torch.linspace(0.0, 1.0, 40).unsqueeze(-1)
    clusters = torch.arange(40) // 20
    before = {k: v.clone() for k, v in model.bank.state_dict().items()}
    warm_start_(vmonf.guide, x, 1 - clusters, steps=300, lr=0.5, seed=0)
    assert torch.equal(vmonf.predict(x), 1 - clusters)
    assert all(torch.equal(v, before[k]) for k, v in model.bank.state_dict().items())


@pytest.mark.parametrize("guide", [None, ExactGuide(), lambda: None, Lines().requires_grad_(False)])
def test_a_guide_that_has_nothing_to_learn_is_refused(guide: Any) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(1, 2)), guide)
    state = copy.deepcopy(vmonf.state_dict())
    with pytest.raises(TypeError, match="warm_start_ trains the log_q of a guide"):
        warm_start_(vmonf.guide, torch.randn(40, 1))
    with pytest.raises(TypeError, match="pretrain_ needs network"):
        pretrain_(vmonf.guide, torch.randn(40, 1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"guide is a Lines; .* pass vmonf.guide"):
        warm_start_(Lines(), torch.randn(40, 1))  # type: ignore[arg-type]
    assert all(torch.equal(v, state[k]) for k, v in vmonf.state_dict().items())


def test_labels_number_the_clusters() -> None:
    x, circle = two_circles(per_circle=256, seed=0)
    for names in (circle, 1 - circle):
        y = torch.full_like(circle, -1)
        y[::50] = names[::50]
        vmonf = VMoNF(FlowMixture(RealNVP(2, 2, blocks=2)), SoftmaxGuide(MLP(2, 2)))
        warm_start_(vmonf.guide, x, y=y, seed=0)
        assert (vmonf.predict(x) == names).double().mean() > 0.98


def test_starts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="15 neighbours need more rows"):
        spectral_clusters(torch.randn(10, 2), 2)
    with pytest.raises(ValueError, match="bound to no model"):
        warm_start_(SoftmaxGuide(MLP(2, 2)), torch.randn(40, 2))


@pytest.mark.parametrize("shift", [0.0, 1e3, 1e4])
def test_neighbours_do_not_depend_on_where_the_data_are(shift: float) -> None:
    with local_seed(0):
        x = torch.randn(200, 2)
    found = nearest_neighbors(x + shift, 5)
    exact = (x + shift).double()
    exact = (exact - exact.mean(0)) / exact.std(0)
    wanted = (exact[:, None] - exact).norm(dim=-1).fill_diagonal_(torch.inf).topk(5, largest=False)
    agree = (found.unsqueeze(-1) == wanted.indices.unsqueeze(1)).any(-1).double().mean()
    assert agree > 0.99  # float32 itself moves the rows


def test_a_constant_feature_counts_nothing() -> None:
    with local_seed(0):
        x = torch.randn(100, 2)
    more = torch.cat((x, torch.full((100, 1), 5.0)), 1)
    assert torch.equal(nearest_neighbors(more, 5), nearest_neighbors(x, 5))


BAD_STARTS: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "too large": ({"clusters": torch.full((50,), 7)}, ValueError, "7"),
    "floats": ({"clusters": torch.rand(50)}, TypeError, "integer"),
    "too short": ({"clusters": torch.zeros(49).long()}, ValueError, "50 rows"),
    "too long": ({"clusters": torch.zeros(51).long()}, ValueError, "50 rows"),
    "unlabelled": ({"clusters": torch.full((50,), -1)}, ValueError, "from 0"),
    "labels": ({"y": [0, 1]}, ValueError, "50 rows"),
    "steps": ({"steps": 0}, ValueError, "steps is 0"),
}


@pytest.mark.parametrize("case", BAD_STARTS)
def test_a_refused_start_changes_nothing(case: str) -> None:
    options, error, message = BAD_STARTS[case]
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=1)), SoftmaxGuide(MLP(2, 3)))
    state = copy.deepcopy(vmonf.state_dict())
    with local_seed(0):
        x = torch.randn(50, 2)
    with pytest.raises(error, match=message):
        warm_start_(vmonf.guide, x, **options)  # type: ignore[arg-type]
    assert all(torch.equal(v, state[k]) for k, v in vmonf.state_dict().items())


def test_evidence_of_any_kind_numbers_the_clusters() -> None:
    with local_seed(0):
        x = torch.randn(60, 2) + 20 * torch.eye(3)[torch.arange(60) % 3, :2]
    truth = torch.arange(60) % 3
    evidence = torch.zeros(60, 3)
    evidence[:6] = torch.nn.functional.one_hot(truth[:6], 3).float().log().clamp_min(-9)
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=1)), SoftmaxGuide(MLP(2, 3)))
    warm_start_(vmonf.guide, x, truth.roll(1), y=evidence, seed=0)
    unlabelled = torch.full((60,), -1)
    warm_start_(vmonf.guide, x, truth, y=unlabelled, seed=0)
    assert (vmonf.predict(x) == truth).double().mean() > 0.95
