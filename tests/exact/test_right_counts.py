"""Rows that weights count, each once: right values where wrong ones were found."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import Dirichlet
from pyro.infer import SVI, JitTraceEnum_ELBO, TraceEnum_ELBO
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    Gaussian,
    MarkovMixture,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    fit_em,
)
from pyro_vmonf.guides.exact import MarginalGuide
from pyro_vmonf.nn import MLP
from pyro_vmonf.starts import warm_start_
from pyro_vmonf.weights import LearnedWeights
from tests.samples import HALF, N, double_rows, sixty_rows, still, two_blobs, two_gaussians

K = 3


@pytest.mark.parametrize("weights", ["learned", "dirichlet"])
def test_interleaved_rows_count_once_each(weights: str) -> None:
    x = two_blobs()
    y = torch.full((N,), -1)
    y[:160], y[200:240] = 0, 1
    vmonf = two_gaussians(dist.Dirichlet(torch.ones(2)) if weights == "dirichlet" else weights)
    warm_start_(vmonf.guide, x, HALF, seed=0)
    vmonf.fit(x, y, epochs=5, batch_size=50, interleave=True, seed=0, progress=False)
    torch.testing.assert_close(
        vmonf.model.weights.log_mean().exp().detach(),
        vmonf.predict_proba(x, y).mean(0),
        rtol=0,
        atol=0.02,
    )
    torch.testing.assert_close(vmonf.model.standardizer.loc, x.mean(0))
    if weights == "dirichlet":
        total = vmonf.model.weights.posterior.log_concentration.detach().exp().sum()
        assert float(total) == pytest.approx(N + 2, rel=1e-3)


@pytest.mark.parametrize("particles", [1, 3])
def test_particles_of_a_step_count_its_rows_once(particles: int) -> None:
    x = two_blobs()
    model = FlowMixture(Gaussian(2, 2), dist.Dirichlet(torch.ones(2)))
    model.bank.set_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.eye(2).expand(2, 2, 2))
    elbo = pyro.infer.TraceEnum_ELBO(num_particles=particles, max_plate_nesting=1)
    svi = pyro.infer.SVI(model, ExactGuide(model), pyro.optim.Adam({"lr": 0.0}), elbo)
    for index in [*torch.arange(N).split(100)] * 3:
        svi.step(x[index], index=index, size=N)
    counted = model.weights.posterior.log_concentration.exp()
    torch.testing.assert_close(counted.detach(), torch.full((2,), 201.0), rtol=1e-4, atol=1e-2)


def test_rows_of_a_loader_that_leaves_some_out_are_counted() -> None:
    x = two_blobs()
    x[::2] = math.nan

    def kept(rows: list[Tensor]) -> Tensor:
        return torch.stack([row for row in rows if row.isfinite().all()])

    vmonf = two_gaussians(dist.Dirichlet(torch.ones(2)))
    loader = DataLoader(x, batch_size=40, collate_fn=kept)  # type: ignore[arg-type]
    vmonf.fit(loader, epochs=3, progress=False, seed=0)
    total = vmonf.model.weights.posterior.log_concentration.detach().exp().sum()
    assert float(total) == pytest.approx(N / 2 + 2, rel=1e-3)


def test_groups_with_weights_of_their_own_are_not_counted_together() -> None:
    x = two_blobs().reshape(20, 20, 2)
    model = FlowMixture(Gaussian(2, 2), dist.Dirichlet(torch.ones(2)))
    guide = SoftmaxGuide(MLP(2, 2), model=model)
    before = model.weights.posterior.log_concentration.detach().clone()
    with pyro.plate("groups", 20, dim=-2):
        guide(x)
    assert torch.equal(model.weights.posterior.log_concentration, before)


@pytest.mark.parametrize("with_index", [True, False])
@pytest.mark.parametrize("weights", ["learned", Dirichlet(torch.ones(2))], ids=["learned", "prior"])
def test_batches_in_one_buffer_are_different_batches(weights: Any, with_index: bool) -> None:
    x = torch.cat((torch.randn(100, 2), torch.randn(300, 2) + 9))
    order = torch.arange(400) if with_index else torch.randperm(400)
    model = FlowMixture(Gaussian(2, 2), weights)
    model.bank.set_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.eye(2).expand(2, 2, 2))
    svi = SVI(model, ExactGuide(model), pyro.optim.Adam({"lr": 0.0}), TraceEnum_ELBO())
    buffer = torch.empty(100, 2)
    for _ in range(3):
        for rows in order.split(100):
            buffer.copy_(x[rows])
            svi.step(buffer, size=400, **({"index": rows} if with_index else {}))
    prior = 0 if weights == "learned" else 1
    wanted = torch.tensor([100.0 + prior, 300 + prior])
    torch.testing.assert_close(model.weights.log_mean().exp(), wanted / wanted.sum())


def test_the_same_batch_once_more_counts_in_place_of_itself() -> None:
    x = torch.cat((torch.randn(100, 2), torch.randn(300, 2) + 9))
    model = FlowMixture(Gaussian(2, 2), "learned")
    model.bank.set_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.eye(2).expand(2, 2, 2))
    loss = TraceEnum_ELBO(num_particles=3)
    svi = SVI(model, ExactGuide(model), pyro.optim.Adam({"lr": 0.0}), loss)
    for _ in range(2):
        for rows in torch.arange(400).split(100):
            batch = x[rows]
            svi.step(batch, index=rows, size=400)
    torch.testing.assert_close(model.weights.log_mean().exp(), torch.tensor([0.25, 0.75]))


def two_sets() -> tuple[Tensor, Tensor]:
    """10,000 rows of which a tenth is in the second cluster, and 400 of which nine tenths are."""
    many = torch.cat((torch.randn(9000, 2), torch.randn(1000, 2) + 9))
    few = torch.cat((torch.randn(40, 2), torch.randn(360, 2) + 9))
    return many[torch.randperm(10_000)], few[torch.randperm(400)]


def test_a_fit_does_not_count_the_rows_of_the_last_one() -> None:
    many, few = two_sets()
    model = FlowMixture(Gaussian(2, 2), "learned")
    model.bank.set_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]), torch.eye(2).expand(2, 2, 2))
    vmonf = VMoNF(model)
    options: dict[str, Any] = {"progress": False, "seed": 0, "standardize": False, "lr": 1e-9}
    vmonf.fit(many, steps=15, batch_size=500, **options)
    vmonf.fit(few, epochs=1, batch_size=100, **options)
    torch.testing.assert_close(model.weights.log_mean().exp(), torch.tensor([0.1, 0.9]))


def test_em_is_not_undone_by_counts_of_other_rows() -> None:
    many, few = two_sets()
    model = FlowMixture(Gaussian(2, 2), "learned")
    fit_em(model, many, seed=0)
    VMoNF(model).fit(many, epochs=1, progress=False, seed=0)
    fit_em(model, few, seed=0)
    before = model.weights.log_mean().exp()
    VMoNF(model).fit(few, steps=3, batch_size=100, progress=False, seed=0, lr=1e-9)
    torch.testing.assert_close(model.weights.log_mean().exp(), before, rtol=0, atol=0.03)


@pytest.mark.parametrize("pretrain", [0, 1, 3])
@pytest.mark.parametrize("interleave", [False, True])
def test_weights_are_the_mean_responsibilities_after_labelled_epochs(
    pretrain: int, interleave: bool
) -> None:
    """Responsibilities stand still, so the weights have to be their mean to rounding."""
    x = double_rows(40)
    y = torch.randint(-1, K, (40,), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    one = VMoNF(FlowMixture(RealNVP(2, K, blocks=2), "learned"), SoftmaxGuide(MLP(2, K))).double()
    one.model.standardize_(x)
    right = one.predict_proba(x, y).mean(0)
    options: dict[str, Any] = {"optimizer": still, "temperature": 1.0, "seed": 0}
    options |= {"pretrain_epochs": pretrain, "interleave": interleave, "progress": False}
    one.fit(x, y, epochs=5, batch_size=7, **options)
    found = one.model.weights.log_mean().exp().detach()
    torch.testing.assert_close(found, right, rtol=0, atol=1e-12)


def test_counts_that_are_forgotten_stay_so_in_a_file(tmp_path: Path) -> None:
    x = sixty_rows(40)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2), "learned"), ExactGuide())
    vmonf.fit(x[:20], epochs=3, progress=False, seed=0)
    fit_em(vmonf.model, x, seed=0)
    vmonf.save(tmp_path / "pair.pt")
    found = []
    for pair in (vmonf, copy.deepcopy(vmonf), VMoNF.load(tmp_path / "pair.pt")):
        pyro.clear_param_store()
        pair.train()
        svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 1e-12}), TraceEnum_ELBO())
        svi.step(x[:10], size=40, index=torch.arange(10))
        found.append(pair.model.weights.log_mean().detach().exp())
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_em_counts_the_pseudo_rows_of_the_weights() -> None:
    x = torch.cat((sixty_rows(200) - 20, sixty_rows(100) + 20))
    model = FlowMixture(Gaussian(2, 2), LearnedWeights(2, pseudo_count=1000.0))
    fit_em(model, x, seed=0)
    found = model.weights.log_mean().exp().sort().values
    torch.testing.assert_close(found, torch.tensor([1100 / 2300, 1200 / 2300]))
    weighted = FlowMixture(Gaussian(2, 2), LearnedWeights(2, pseudo_count=1000.0))
    fit_em(weighted, x, sample_weight=torch.full((300,), 2.0), seed=0)
    found = weighted.weights.log_mean().exp().sort().values
    torch.testing.assert_close(found, torch.tensor([1200 / 2600, 1400 / 2600]))


def unequal_blobs(share: float = 0.2) -> Tensor:
    low = round(100 * share)
    return torch.cat((sixty_rows(low) - 4, sixty_rows(100 - low) + 4)).double()


def known(weights: Any) -> FlowMixture:
    bank = Gaussian(2, 2).double()
    with torch.no_grad():
        bank.loc.copy_(torch.tensor([[-4.0, -4.0], [4.0, 4.0]]))
    return FlowMixture(bank.requires_grad_(False), weights).double()


WEIGHTS = {
    "learned": lambda: "learned",
    "dirichlet": lambda: dist.Dirichlet(torch.ones(2).double()),
}


GUIDES: dict[str, Any] = {
    "exact": lambda model: ExactGuide(model),
    "none": lambda model: MarginalGuide(model),
    "network": lambda model: SoftmaxGuide(MLP(2, 2).double(), model=model),
}


def trained(model: FlowMixture, guide: Any, around: Any, x: Tensor, steps: int = 1) -> Tensor:
    """Return the weights after steps of plain SVI with handlers around both programs."""

    def wrapped(program: Any) -> Any:
        def run(x: Tensor) -> None:
            with around():
                program(x)

        return run

    elbo = TraceEnum_ELBO(max_plate_nesting=2, strict_enumeration_warning=False)
    svi = SVI(wrapped(model), wrapped(guide), pyro.optim.SGD({"lr": 0.0}), elbo)
    for _ in range(steps):
        svi.step(x)
    return model.weights.log_mean().exp()


@pytest.mark.parametrize("guide", ["exact", "none"])
def test_masked_rows_do_not_count(guide: str) -> None:
    x, mask = unequal_blobs(), torch.arange(100) < 40  # 20 rows of each
    model = known("learned")
    found = trained(model, GUIDES[guide](model), lambda: poutine.mask(mask=mask), x)
    torch.testing.assert_close(found, torch.full((2,), 0.5).double(), rtol=0, atol=1e-6)


def test_scaled_rows_count_by_their_scale() -> None:
    scale = torch.where(torch.arange(100) < 20, 4.0, 1.0).double()
    model = known("learned")
    found = trained(model, ExactGuide(model), lambda: poutine.scale(scale=scale), unequal_blobs())
    torch.testing.assert_close(found, torch.full((2,), 0.5).double(), rtol=0, atol=1e-6)
    whole = known(dist.Dirichlet(torch.ones(2).double()))  # one number scales the prior as well
    found = trained(whole, ExactGuide(whole), lambda: poutine.scale(scale=0.01), unequal_blobs())
    expected = torch.tensor([21 / 102, 81 / 102]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_masked_sequences_do_not_count() -> None:
    x = unequal_blobs(0.8).reshape(50, 2, 2)
    bank = known("learned").bank
    model = MarkovMixture(bank, "learned", "uniform").double()
    mask = torch.arange(50) >= 30  # ten of each
    trained(model, MarginalGuide(model), lambda: poutine.mask(mask=mask), x)
    found = model.initial.log_mean().exp()
    torch.testing.assert_close(found, torch.full((2,), 0.5).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dim", [-2, None])
def test_groups_that_are_drawn_are_a_part_of_the_data(dim: int | None, weights: str) -> None:
    torch.manual_seed(0)
    x = (0.1 * torch.randn(10, 50, 2)).double() - 4
    x[5:] += 8
    model = known(WEIGHTS[weights]())
    guide = ExactGuide(model)
    turns = itertools.cycle(torch.arange(10).split(2))

    def run(program: Any, drawn: Tensor) -> None:
        plate = pyro.plate("groups", 10, subsample=drawn, dim=dim)
        if dim is None:
            for i in plate:
                program(x[i])
        else:
            with plate as i:
                program(x[i])

    prior = 0.0 if weights == "learned" else 1.0
    for _ in range(15 if dim else 0):
        drawn = next(turns)
        elbo = TraceEnum_ELBO(max_plate_nesting=2)
        elbo.loss(lambda d: run(model, d), lambda d: run(guide, d), drawn)
    if dim is None:  # one after the other, each a tenth
        for _ in range(3):
            for drawn in torch.arange(10).split(1):
                run(guide, drawn)
    found = model.weights.log_mean().exp()
    expected = torch.tensor([250 + prior, 250 + prior]).double()
    torch.testing.assert_close(found, expected / expected.sum(), rtol=0, atol=1e-6)


def test_a_program_with_masks_of_its_own_warns_of_the_counts() -> None:
    class Masked(FlowMixture):
        def forward(self, x: Any = None, *args: Any, **options: Any) -> Any:
            with poutine.mask(mask=torch.arange(len(x)) < 40):
                return super().forward(x, *args, **options)

    x = unequal_blobs()
    options: dict[str, Any] = {"epochs": 1, "batch_size": 100, "progress": False}
    weighted = options | {"sample_weight": torch.ones(100)}
    for given in (options, weighted):
        with (
            pytest.warns(RuntimeWarning, match="count all rows alike"),
            pytest.warns(RuntimeWarning, match="counts otherwise .*: its mask is 1"),
        ):
            VMoNF(Masked(Gaussian(2, 2).double(), "learned"), ExactGuide()).fit(x, **given)
    VMoNF(FlowMixture(Gaussian(2, 2).double(), "learned"), ExactGuide()).fit(x, **weighted)

    class Careless(FlowMixture):
        def forward(self, x: Any = None, *args: Any, **rest: Any) -> Any:
            return super().forward(x, *args, **{**rest, "sample_weight": None})

    with pytest.warns(RuntimeWarning, match="count all rows alike"):
        VMoNF(Careless(Gaussian(2, 2).double(), "learned"), ExactGuide()).fit(x, **weighted)
    free = Masked(Gaussian(2, 2).double(), LearnedWeights(2, "gradient").double())
    with pytest.warns(RuntimeWarning, match="'c' counts otherwise"):
        VMoNF(free, ExactGuide()).fit(x, **options)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is")
@pytest.mark.parametrize("weights", WEIGHTS)
def test_counts_under_torch_jit_are_refused(weights: str) -> None:
    model = known(WEIGHTS[weights]())
    guide = GUIDES["network"](model)
    jit = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), jit)
    with pytest.raises(ValueError, match="in every step, which torch"):
        svi.step(unequal_blobs())
