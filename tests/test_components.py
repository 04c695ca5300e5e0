"""Components reordered, pruned, copied, reported on and brought back to life."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Categorical, Dirichlet, Normal
from pyro.infer import Predictive
from torch import nn

from pyro_vmonf import (
    MAF,
    NSF,
    Flow,
    FlowMixture,
    Gaussian,
    Glow,
    MAFMoG,
    PixelFlow,
    RealNVP,
    RotatedRealNVP,
    SoftmaxGuide,
    Stack,
    VMoNF,
    select,
)
from pyro_vmonf.components import take_components_
from pyro_vmonf.flows import GaussianMixtures, StandardNormal
from pyro_vmonf.metrics import match_components
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts.reseeding import Reseed, copy_component_, split_in_two
from pyro_vmonf.transforms import Affine, AffineCoupling, BatchNorm, Permutation, PReLU

# D = K, so that a tensor of D features could be mistaken for one of K components.
K = D = 4
BANKS: dict[str, Callable[[], nn.Module]] = {
    "realnvp": lambda: RealNVP(D, K, blocks=2, hidden=(K,)),
    "maf": lambda: MAF(D, K, blocks=2, hidden=(K,)),
    "nsf": lambda: NSF(D, K, blocks=1, hidden=(K,)),
    "gaussian": lambda: Gaussian(D, K),
    "chain": lambda: Flow(
        [
            Affine(D, batch_shape=(K,)),
            PReLU(D, batch_shape=(K,)),
            Permutation(D, batch_shape=(K,)),
            BatchNorm(D, batch_shape=(K,)),
            Affine(D),
        ],
        base=StandardNormal(D, K),
    ),
}
WEIGHTS: dict[str, Callable[[], object]] = {
    "fixed": lambda: torch.tensor([0.1, 0.2, 0.3, 0.4]),
    "learned": lambda: "learned",
    "random": lambda: Dirichlet(torch.tensor([1.0, 2.0, 3.0, 4.0])),
}


def pair(bank: str = "realnvp", weights: str = "fixed") -> VMoNF:
    vmonf = VMoNF(FlowMixture(BANKS[bank](), WEIGHTS[weights]()), SoftmaxGuide(MLP(D, K)))
    with torch.no_grad():
        for parameter in vmonf.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vmonf.eval()


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("index", [[2, 0, 3, 1], [3, 1], [2]])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("bank", BANKS)
def test_components_that_are_taken_stay_what_they_were(
    bank: str, weights: str, index: list[int]
) -> None:
    vmonf, x = pair(bank, weights), torch.randn(9, D)
    density, weight = vmonf.component_log_prob(x), vmonf.model.weights.log_mean().exp()
    logits = vmonf.guide.network(x)
    take_components_(vmonf, torch.tensor(index))
    torch.testing.assert_close(vmonf.component_log_prob(x), density[:, index])
    expected = weight[index] / weight[index].sum()
    torch.testing.assert_close(vmonf.model.weights.log_mean().exp(), expected)
    torch.testing.assert_close(vmonf.predict_proba(x), logits[:, index].softmax(-1))
    assert vmonf.model.components().batch_shape == (len(index),)
    assert vmonf.sample(5)[1].max() < len(index)
    vmonf.fit(torch.randn(40, D), epochs=1, progress=False)  # and goes on training


SHARED: dict[str, Callable[[int], Any]] = {
    "coupling": lambda k: RealNVP(k, k, blocks=3, hidden=(k,), shared=2),
    "one network": lambda k: RealNVP(k, k, blocks=3, hidden=(k,), shared=2, networks=1),
    "at the base": lambda k: RealNVP(k, k, blocks=3, hidden=(k,), shared=2, shared_at="base"),
    "mixtures behind couplings": lambda k: RealNVP(
        k, k, blocks=2, hidden=(k,), shared=1, base=GaussianMixtures(k, k, k)
    ),
    "splines": lambda k: NSF(k, k, blocks=2, hidden=(k,), bins=k, shared=1),
    "autoregressive": lambda k: MAF(k, k, blocks=2, hidden=(k,), shared=1),
    "mixtures of Gaussians": lambda k: MAFMoG(k, k, blocks=2, hidden=(k,), mixtures=k, shared=1),
    "a chain": lambda k: Flow(
        [Affine(k, batch_shape=(k,)), AffineCoupling(k), Permutation(k)], base=StandardNormal(k, k)
    ),
    "rotated": lambda k: RotatedRealNVP(k, blocks=3, hidden=(k,)),
    "pixels": lambda k: PixelFlow((1, 4, 4), k, channels=4, depth=1, squeezes=1),
    "images": lambda k: Glow((k, 4, 4), k, blocks=2, channels=k, scales=1),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("bank", SHARED)
def test_layers_that_all_share_stay_where_every_size_is_the_number_of_components(
    bank: str, k: int
) -> None:
    vmonf = VMoNF(FlowMixture(SHARED[bank](k), "learned"))
    with torch.no_grad():
        for parameter in vmonf.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    vmonf.eval()
    x = torch.rand(9, *vmonf.model.event_shape)
    before, density = vmonf.component_log_prob(x), vmonf.log_prob(x)
    take_components_(vmonf, torch.arange(k).flip(0))
    torch.testing.assert_close(vmonf.component_log_prob(x), before.flip(1))
    torch.testing.assert_close(vmonf.log_prob(x), density)
    copy_component_(vmonf.model, 0, 1, noise=0.0)
    expected = before.flip(1)[:, [0, 0, *range(2, k)]]
    torch.testing.assert_close(vmonf.component_log_prob(x), expected)
    take_components_(vmonf, torch.tensor([1]))
    torch.testing.assert_close(vmonf.component_log_prob(x), expected[:, [1]])
    vmonf.fit(torch.rand(20, *vmonf.model.event_shape), epochs=1, progress=False)


class Linear(pyro.nn.PyroModule):
    """A guide that is no part of the library, and says how its components lie in it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(D, 4))

    def log_q(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight).log_softmax(-1)

    def take_(self, index: torch.Tensor) -> None:
        self.weight = torch.nn.Parameter(self.weight.detach()[:, index])

    def forward(self, x: torch.Tensor, index: Any = None, size: int | None = None) -> None:
        with pyro.plate("data", size or len(x), subsample=index):
            q = pyro.distributions.Categorical(logits=self.log_q(x))
            pyro.sample("c", q, infer={"enumerate": "parallel"})


def test_a_guide_of_ones_own_is_turned_by_its_take() -> None:
    vmonf, x, index = VMoNF(pair().model, Linear()), torch.randn(9, D), [3, 0]
    density, q = vmonf.component_log_prob(x), vmonf.predict_proba(x)
    take_components_(vmonf, torch.tensor(index))
    torch.testing.assert_close(vmonf.component_log_prob(x), density[:, index])
    expected = q[:, index] / q[:, index].sum(-1, keepdim=True)
    torch.testing.assert_close(vmonf.predict_proba(x), expected)
    vmonf.fit(torch.randn(40, D), epochs=1, progress=False)


def test_a_pruned_pair_is_saved_and_loaded(tmp_path: object) -> None:
    vmonf, x = pair(), torch.randn(9, D)
    take_components_(vmonf, torch.tensor([3, 0]))
    vmonf.save(tmp_path / "pair.pt")  # type: ignore[operator]
    loaded = VMoNF.load(tmp_path / "pair.pt")  # type: ignore[operator]
    assert torch.equal(loaded.component_log_prob(x), vmonf.component_log_prob(x))
    assert torch.equal(loaded.predict_proba(x), vmonf.predict_proba(x))


@pytest.mark.parametrize("index", [[], [0, 0], [4], [-1]])
def test_what_is_no_choice_of_components_is_refused(index: list[int]) -> None:
    vmonf = pair()
    before = {k: v.clone() for k, v in vmonf.state_dict().items()}
    with pytest.raises(ValueError, match="expected distinct whole numbers from 0 to 3"):
        take_components_(vmonf, torch.tensor(index, dtype=torch.long))
    assert all(torch.equal(v, before[k]) for k, v in vmonf.state_dict().items())


def test_banks_of_unknown_layout_are_refused() -> None:
    mixed = VMoNF(FlowMixture(Stack([Gaussian(2, 1), RealNVP(2, 3, blocks=2)])))
    with pytest.raises(ValueError, match="Stack"):
        take_components_(mixed, torch.tensor([1, 0, 2, 3]))
    bank = Flow([Affine(2, batch_shape=(3,))], base=StandardNormal(2, 3))
    bank.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="extra is a Linear, which has tensors but no"):
        take_components_(VMoNF(FlowMixture(bank)), torch.tensor([1, 0]))


@pytest.mark.parametrize("soft", [True, False])
def test_matching_undoes_a_permutation(soft: bool) -> None:
    reference = torch.randn(200, 5).mul(3).softmax(-1)
    shuffled = torch.tensor([3, 0, 4, 1, 2])
    posterior = reference[:, shuffled]
    order = match_components(reference if soft else reference.argmax(-1), posterior)
    assert torch.equal(posterior[:, order], reference)


def test_a_refit_takes_the_order_of_the_first() -> None:
    first, x = pair(), torch.randn(50, D)
    q = first.predict_proba(x)
    second = pair()
    second.load_state_dict(first.state_dict())
    take_components_(second, torch.tensor([1, 3, 0, 2]))
    second.align_(q, x)
    torch.testing.assert_close(second.predict_proba(x), q)
    torch.testing.assert_close(second.component_log_prob(x), first.component_log_prob(x))


def separated() -> tuple[VMoNF, torch.Tensor, torch.Tensor]:
    """Three Gaussians far apart for four components, of which the last is dead."""
    centres = torch.tensor([[-20.0, 0.0], [0.0, 0.0], [20.0, 0.0]])
    clusters = torch.arange(300) % 3
    x = centres[clusters] + torch.randn(300, 2)
    bank = Gaussian(2, 4)
    bank.set_(torch.cat((centres, torch.tensor([[0.0, 500.0]]))), torch.eye(2).expand(4, 2, 2))
    network = nn.Linear(2, 4)
    with torch.no_grad():  # logits of the exact posterior
        network.weight.copy_(bank.loc)
        network.bias.copy_(-bank.loc.square().sum(-1) / 2)
    return VMoNF(FlowMixture(bank), SoftmaxGuide(network)), x, clusters


def test_the_report_says_what_is_known() -> None:
    vmonf, x, clusters = separated()
    report = vmonf.report(x)
    share = torch.tensor([1.0, 1.0, 1.0, 0.0]) / 3
    torch.testing.assert_close(report.usage, share, atol=1e-4, rtol=0)
    torch.testing.assert_close(report.usage_exact, share, atol=1e-4, rtol=0)
    torch.testing.assert_close(report.overlap[:3, :3], torch.eye(3), atol=1e-4, rtol=0)
    assert report.dead().tolist() == [3]
    assert report.doubled() == []
    assert abs(report.gap) < 1e-5
    own = vmonf.component_log_prob(x).gather(1, clusters[:, None]).squeeze(1)
    for c in range(3):
        expected = own[clusters == c].mean()
        torch.testing.assert_close(report.log_prob[c], expected)
    assert (report.entropy[:3] < 1e-4).all()
    assert report.entropy[3].isnan()
    assert (report.inversion_error[:3] < 1e-5).all()
    assert "dead (under 1 % of the rows): [3]" in str(report)


def test_doubles_are_named() -> None:
    vmonf, x, _ = separated()
    with torch.no_grad():
        vmonf.model.bank.loc[3] = vmonf.model.bank.loc[1]
    report = vmonf.report(x)
    assert report.doubled() == [(1, 3)]
    torch.testing.assert_close(report.overlap[1, 3], torch.tensor(0.5), atol=1e-3, rtol=0)
    assert report.gap == pytest.approx(torch.log(torch.tensor(2.0)).item() / 3, abs=1e-3)


def test_a_flow_that_does_not_invert_is_found_out() -> None:
    vmonf = pair()
    x = torch.randn(64, D)
    assert vmonf.report(x).inversion_error.nan_to_num().max() < 1e-4
    univariate = vmonf.model.bank.transforms[0].univariate
    inverse = univariate.inverse

    def wrong(x: torch.Tensor, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z, log_slope = inverse(x, theta)
        return z + 0.1, log_slope

    univariate.inverse = wrong
    assert vmonf.report(x).inversion_error.nan_to_num().max() > 1e-2


def test_copies_are_close_and_not_equal() -> None:
    vmonf, x = pair(), torch.randn(9, D)
    before = vmonf.component_log_prob(x)
    copy_component_(vmonf.model, 1, 3)
    after = vmonf.component_log_prob(x)
    assert torch.equal(after[:, :3], before[:, :3])
    assert (after[:, 3] - after[:, 1]).abs().max() > 0
    torch.testing.assert_close(after[:, 3], after[:, 1], rtol=0.2, atol=0.5)


def test_rows_are_split_along_their_longest_direction() -> None:
    x = torch.cat((torch.randn(40, 3), torch.randn(40, 3) + torch.tensor([30.0, 0.0, 0.0])))
    half = split_in_two(x)
    assert half[:40].unique().numel() == 1
    assert half.bincount().tolist() == [40, 40]


@pytest.mark.parametrize("seed", range(3))
def test_a_dead_component_is_brought_back(seed: int) -> None:
    torch.manual_seed(seed)
    centres = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
    x = centres[torch.arange(600) % 3] + 0.3 * torch.randn(600, 2)
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=2)), SoftmaxGuide(MLP(2, 3)))
    with torch.no_grad():
        vmonf.guide.network.layers[-1].bias.copy_(torch.tensor([0.0, 0.0, -30.0]))
    reseed = Reseed(x, every=5, until=10)
    vmonf.fit(x, epochs=30, batch_size=200, lr=5e-3, seed=seed, callbacks=reseed, progress=False)
    assert reseed.reseeded
    assert reseed.reseeded[0][1] == 2
    assert vmonf.predict_proba(x).mean(0).min() > 0.05


def test_nothing_is_reseeded_where_all_are_alive() -> None:
    vmonf, x, _ = separated()
    take_components_(vmonf, torch.tensor([0, 1, 2]))
    reseed = Reseed(x, every=1)
    vmonf.fit(x, epochs=2, lr=0.0, standardize=False, callbacks=reseed, progress=False)
    assert reseed.reseeded == []


def test_pruning_leaves_the_living() -> None:
    vmonf, x, clusters = separated()
    assert vmonf.prune_(x).tolist() == [0, 1, 2]
    assert torch.equal(vmonf.predict(x), clusters)
    assert vmonf.prune_(x).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="no component would stay"):
        vmonf.prune_(x, below=0.9)


def test_a_distribution_as_a_bank_cannot_be_pruned() -> None:
    loc = torch.tensor([[0.0, 0.0], [50.0, 50.0], [3.0, 3.0]])
    vmonf = VMoNF(FlowMixture(torch.distributions.Independent(Normal(loc, 1.0), 1)))
    x = torch.randn(50, 2)
    before = vmonf.component_log_prob(x)
    with pytest.raises(ValueError, match="ConstantDistribution, whose components cannot be taken"):
        vmonf.prune_(x)
    assert torch.equal(vmonf.component_log_prob(x), before)
    assert vmonf.model.num_components == 3


def test_bounded_components_are_reported() -> None:
    class Boxes(nn.Module):
        def forward(self) -> torch.distributions.Distribution:
            low = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
            box = torch.distributions.Uniform(low, low + 1, validate_args=False)
            return torch.distributions.Independent(box, 1, validate_args=False)

    vmonf = VMoNF(FlowMixture(Boxes()))
    x = torch.rand(40, 2) + 2.0 * (torch.arange(40) % 2)[:, None]
    torch.testing.assert_close(vmonf.report(x).log_prob, torch.zeros(2))


def test_matching_takes_arrays_and_refuses_what_it_cannot_use() -> None:
    q = torch.eye(3)[[2, 2, 0, 1]]
    order = match_components(np.array([1, 1, 0, -1]), q.numpy())
    assert order.tolist() == [0, 2, 1]
    with pytest.raises(TypeError, match="integers"):
        match_components(torch.rand(4), q)
    with pytest.raises(ValueError, match="not finite"):
        match_components(torch.full((4, 3), torch.nan), q)
    with pytest.raises(ValueError, match="shape"):
        match_components(torch.tensor([0, 1]), q)
    vmonf = VMoNF(FlowMixture(RealNVP(2, 3, blocks=2)))
    with pytest.raises(ValueError, match="below is nan"):
        vmonf.prune_(torch.randn(5, 2), below=float("nan"))


def test_one_choice_after_the_other_is_one_choice() -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(2, 4, blocks=2)), SoftmaxGuide(MLP(2, 4)))
    x = torch.randn(20, 2)
    before = vmonf.predict_proba(x)
    take_components_(vmonf, torch.tensor([3, 1, 0, 2]))
    take_components_(vmonf, torch.tensor([2, 0]))
    wanted = before[:, [0, 3]]
    torch.testing.assert_close(vmonf.predict_proba(x), wanted / wanted.sum(-1, keepdim=True))
    assert isinstance(vmonf.guide.network.network, MLP)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_numbers_of_any_whole_kind_choose_components(kind: torch.dtype) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3), "learned"), SoftmaxGuide(MLP(2, 3)))
    x = torch.randn(5, 2)
    before = vmonf.component_log_prob(x)
    take_components_(vmonf, torch.tensor([2, 0], dtype=kind))
    assert torch.equal(vmonf.component_log_prob(x), before[:, [2, 0]])
    assert vmonf.predict_proba(x).shape == (5, 2)


@pytest.mark.parametrize(
    "index",
    [torch.tensor([2.0, 0.0]), torch.tensor([True, False]), torch.tensor(2), [[2, 0]], [1.5, 0]],
    ids=["floats", "a mask", "a number", "a matrix", "halves"],
)
def test_what_is_no_list_of_whole_numbers_leaves_the_pair(index: Any) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3), "learned"), SoftmaxGuide(MLP(2, 3)))
    x = torch.randn(5, 2)
    before = vmonf.predict_proba(x)
    with pytest.raises(ValueError, match="distinct whole numbers from 0 to 2"):
        take_components_(vmonf, index)
    assert torch.equal(vmonf.predict_proba(x), before)


def test_one_number_selects_one_component() -> None:
    model = FlowMixture(Gaussian(2, 3))

    def program() -> torch.Tensor:
        c = pyro.sample("c", Categorical(logits=model.weights()))
        return pyro.sample("x", select(model.components(), c))

    assert program().shape == (2,)
    assert Predictive(program, num_samples=5)()["x"].shape == (5, 2)
    one = select(model.components(), torch.tensor(1))
    assert one.sample((4,)).shape == (4, 2)
    assert one.rsample().shape == (2,)
    with pytest.raises(TypeError, match="c is 1; pass an index tensor"):
        select(model.components(), 1)  # type: ignore[arg-type]
