"""Right values where a tenth and an eleventh reader found wrong ones."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import SVI, JitTraceEnum_ELBO, TraceEnum_ELBO
from torch import Tensor
from torch.distributions import Gamma, Normal, Uniform

from pyro_vmonf import (
    MAF,
    ExactGuide,
    FlowMixture,
    Gaussian,
    MAFMoG,
    MarkovMixture,
    MarkovVMoNF,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    fit_em,
)
from pyro_vmonf.distortions import AffineImages
from pyro_vmonf.flows import Flow
from pyro_vmonf.guides.exact import MarginalGuide
from pyro_vmonf.interop.sbc import _rank
from pyro_vmonf.interop.tables import read_table
from pyro_vmonf.metrics import kl_divergence, kl_to_truth
from pyro_vmonf.nn import MLP
from pyro_vmonf.plots import plot_density
from pyro_vmonf.starts import Reseed, warm_start_
from pyro_vmonf.starts.lessons import pretrain_
from pyro_vmonf.transforms import Logit
from pyro_vmonf.weights import LearnedWeights


def rows(count: int = 60, width: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def blobs(count: int = 90) -> Tensor:
    centres = torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    return centres.repeat_interleave(count // 3, 0) + rows(count)


# Rows with gaps.


def normal(z: Tensor, scale: float) -> Tensor:
    return -0.5 * (z / scale).square() - math.log(scale) - 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 3e-4, 1e-5])
def test_columns_that_nearly_follow_from_others_keep_their_digits(
    spread: float, dtype: torch.dtype
) -> None:
    bank = Gaussian(3, 1)
    with torch.no_grad():
        bank.loc.zero_()
        bank.lower.zero_()
        bank.lower[0, 1, 0] = 1.0
        bank.log_scale.copy_(torch.tensor([[0.0, math.log(spread), 0.0]]))
    vmonf = VMoNF(FlowMixture(bank)).to(dtype)
    first, noise = rows(500, 1), rows(500, 1, seed=1)
    x = torch.cat((first, first + spread * noise, rows(500, 1, seed=2)), 1).to(dtype)
    gap = x.clone()
    gap[:, 2] = torch.nan
    one, two = x.double()[:, 0], x.double()[:, 1]
    expected = normal(one, 1.0) + normal(two - one, spread)
    found = vmonf.partial_log_prob(gap)
    torch.testing.assert_close(found.log_prob.double(), expected, rtol=0, atol=2e-5)
    gap = x.clone()
    gap[:, 0] = torch.nan  # the others say what it is
    shown = vmonf.impute(gap).x[:, 0].double()
    torch.testing.assert_close(shown, two / (1 + spread**2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["flows", "list"])
def test_a_row_without_an_entry_has_the_weights_and_no_density(kind: str) -> None:
    torch.manual_seed(0)
    weights = torch.tensor([0.2, 0.8])
    heavy = dist.StudentT(torch.tensor(2.0), torch.zeros(2), 5 * torch.ones(2)).to_event(1)
    bank = [Gaussian(2, 1), heavy] if kind == "list" else RealNVP(2, 2)
    vmonf = VMoNF(FlowMixture(bank, weights))
    empty = torch.full((3, 2), torch.nan)
    found = vmonf.partial_log_prob(empty)
    torch.testing.assert_close(found.log_prob, torch.zeros(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(found.error, torch.zeros(3))
    torch.testing.assert_close(vmonf.predict_proba(empty, exact=True), weights.expand(3, 2))


# Reports.


def test_touching_clusters_have_the_numbers_of_the_components() -> None:
    x = blobs()
    vmonf = VMoNF.from_data(x, components=3, seed=0, minutes=0.02, progress=False)
    assert vmonf.history is not None
    vmonf.history.choice["touching"] = {"0 and 1": 0.2, "0 and 2": 0.1}
    before = vmonf.predict_proba(x)
    vmonf.align_(torch.tensor([2, 0, 1])[vmonf.predict(x)], x)
    after = vmonf.predict_proba(x)
    place = [int((after - before[:, [c]]).abs().sum(0).argmin()) for c in range(3)]
    pairs = {
        " and ".join(map(str, sorted((place[0], place[c])))): share
        for c, share in ((1, 0.2), (2, 0.1))
    }
    assert vmonf.history.choice["touching"] == pairs
    assert str(vmonf.report()).startswith("3 components")


def test_a_pruned_pair_does_not_report_what_it_was() -> None:
    vmonf = VMoNF.from_data(blobs(), components=3, seed=0, minutes=0.02, progress=False)
    assert len(vmonf.prune_(blobs()[:30], below=0.3)) < 3
    with pytest.raises(ValueError, match="fitted again or pruned"):
        vmonf.report()
    with pytest.raises(ValueError, match="no component would stay"):
        VMoNF(FlowMixture(Gaussian(2, 3))).prune_(blobs(), below=0.99)


@pytest.mark.filterwarnings("ignore:rows .* lie outside")
def test_a_row_outside_leaves_the_gap_a_number() -> None:
    torch.manual_seed(0)
    flows = RealNVP(2, 2, blocks=1)
    bank = Flow([*flows.transforms, Logit()], base=flows.base)
    x = torch.rand(30, 2)
    x[3] = 2.0
    assert math.isfinite(VMoNF(FlowMixture(bank)).report(x).gap)


# Evidence and weights of rows.


@pytest.mark.parametrize("verb", ["predict_proba", "fit"])
@pytest.mark.parametrize("constant", [-1e6, -1e8, -1e39])
def test_log_likelihoods_that_lose_their_digits_are_refused(constant: float, verb: str) -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))
    y = torch.tensor([0.0, 0.33, -torch.inf], dtype=torch.float64).expand(30, 3)
    options: dict[str, Any] = {"epochs": 1, "progress": False} if verb == "fit" else {}
    with pytest.raises(ValueError, match="take off the largest of each row"):
        getattr(vmonf, verb)(rows(30), y + constant, **options)
    double = vmonf.double()
    if constant > -1e7:
        found = double.predict_proba(rows(30).double(), y + constant)
        torch.testing.assert_close(found, double.predict_proba(rows(30).double(), y))


@pytest.mark.parametrize("weight", [1e-46, 1e38])
@pytest.mark.parametrize("verb", ["fit", "from_data"])
def test_weights_that_a_dtype_cannot_hold_are_named(verb: str, weight: float) -> None:
    options: dict[str, Any] = {"sample_weight": np.full(60, weight), "progress": False}
    owner = VMoNF if verb == "from_data" else VMoNF(FlowMixture(Gaussian(2, 2)), ExactGuide())
    options |= {"components": 2} if verb == "from_data" else {}
    with pytest.raises(ValueError, match="divide them by their mean"):
        getattr(owner, verb)(rows(), **options)


def test_em_counts_the_pseudo_rows_of_the_weights() -> None:
    x = torch.cat((rows(200) - 20, rows(100) + 20))
    model = FlowMixture(Gaussian(2, 2), LearnedWeights(2, pseudo_count=1000.0))
    fit_em(model, x, seed=0)
    found = model.weights.log_mean().exp().sort().values
    torch.testing.assert_close(found, torch.tensor([1100 / 2300, 1200 / 2300]))
    weighted = FlowMixture(Gaussian(2, 2), LearnedWeights(2, pseudo_count=1000.0))
    fit_em(weighted, x, sample_weight=torch.full((300,), 2.0), seed=0)
    found = weighted.weights.log_mean().exp().sort().values
    torch.testing.assert_close(found, torch.tensor([1200 / 2600, 1400 / 2600]))


def test_em_refuses_frozen_parameters() -> None:
    model = FlowMixture(Gaussian(2, 2), "learned")
    model.bank.requires_grad_(False)
    before = model.bank.loc.clone()
    with pytest.raises(ValueError, match=r"bank.loc.* are frozen"):
        fit_em(model, rows(), seed=0)
    assert torch.equal(model.bank.loc, before)


# Rows far away.


@pytest.mark.parametrize("bank", [MAF, MAFMoG, RealNVP])
def test_the_largest_numbers_have_no_density(bank: Any) -> None:
    torch.manual_seed(0)
    vmonf = VMoNF(FlowMixture(bank(2, 2)))
    vmonf.fit(rows(), epochs=2, progress=False)
    far = torch.tensor([[s, -s] for s in (1e30, 1e35, 1e37, 3e38)])
    assert (vmonf.log_prob(far) == -torch.inf).all()
    assert (vmonf.component_log_prob(far) == -torch.inf).all()
    weights = vmonf.model.weights.log_mean().exp()
    torch.testing.assert_close(vmonf.predict_proba(far), weights.expand(4, 2))


# Starts.


def gated() -> VMoNF:
    return VMoNF(FlowMixture(RealNVP(2, 3), "learned", context_features=1), SoftmaxGuide(MLP(3, 3)))


def chain() -> MarkovVMoNF:
    return MarkovVMoNF(MarkovMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))


@pytest.mark.parametrize(
    ("pair", "kind", "said"),
    [(gated, ValueError, "depend on a context"), (chain, TypeError, "of sequences")],
)
def test_lessons_of_rows_refuse_other_pairs(pair: Any, kind: type[Exception], said: str) -> None:
    vmonf = pair()
    with pytest.raises(kind, match=said):
        warm_start_(vmonf.guide, rows(), torch.arange(60) % 3)
    with pytest.raises(kind, match=said):
        pretrain_(vmonf.guide, rows(), terms=[lambda batch: batch.log_q.sum(-1)])
    x, options = (
        (rows(), {"given": rows(60, 1)}) if pair is gated else (rows(20).reshape(4, 5, 2), {})
    )
    with pytest.raises(kind, match=said):
        vmonf.fit(x, epochs=3, callbacks=Reseed(x), progress=False, **options)
    assert len(vmonf.history.epoch) == 1  # at once, and not after the first ten epochs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"y": pd.Series([0, 1, None] * 20, dtype="Int64")}, "y"),
        ({"y": np.array([0.0, 1.0, np.nan] * 20)}, "expected integer labels"),
        ({"sample_weight": np.eye(60)[3], "components": 1}, "1 rows have a sample_weight"),
        ({"x": np.zeros((50, 0)), "components": 2}, "without a column"),
    ],
)
def test_from_data_says_what_is_wrong(options: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        VMoNF.from_data(**{"x": rows(), "progress": False, **options})


# Pairs.


def test_a_new_model_takes_the_units_that_the_guide_has_learnt_in() -> None:
    torch.manual_seed(0)
    x = pd.DataFrame(100 * blobs().numpy() + 5000, columns=["a", "b"])
    vmonf = VMoNF(FlowMixture(Gaussian(2, 3)), SoftmaxGuide(MLP(2, 3)))
    vmonf.fit(x, epochs=3, progress=False)
    before = vmonf.predict_proba(x)
    vmonf.model = FlowMixture(RealNVP(2, 3))
    assert torch.equal(vmonf.predict_proba(x[["b", "a"]]), before)
    assert vmonf.log_prob(x).isfinite().all()
    own = FlowMixture(Gaussian(2, 3))
    own.standardize_(x)
    units = own.standardizer.scale.clone() * 2
    own.standardizer.scale.copy_(units)
    vmonf.model = own
    assert torch.equal(vmonf.model.standardizer.scale, units)
    flows = RealNVP(2, 3)
    with pytest.warns(RuntimeWarning, match="fit the pair again"):
        vmonf.model = FlowMixture(Flow([*flows.transforms, Logit()], base=flows.base))


# Divergences, pictures, tables.


def test_a_divergence_from_what_lacks_a_part_is_infinite() -> None:
    found = kl_divergence(Uniform(0.0, 2.0), Uniform(0.0, 1.0), seed=0)
    assert [float(v) for v in found] == [torch.inf, 0.0]
    mean, error = kl_divergence(Normal(0.0, 1.0), Gamma(2.0, 1.0), seed=0)
    assert (float(mean), float(error)) == (torch.inf, 0.0)
    assert kl_to_truth(torch.zeros(3), torch.tensor([0.0, -torch.inf, 0.0])) == (torch.inf, 0.0)
    mean, error = kl_divergence(Uniform(0.0, 1.0), Uniform(0.0, 2.0), seed=0)
    assert float(mean) == pytest.approx(math.log(2))


@pytest.mark.parametrize("features", [["a", "b"], [0.0, 1.0], [0]])
def test_features_that_are_no_numbers_are_refused(features: list[Any]) -> None:
    with pytest.raises(ValueError, match="two or more numbers from 0 to 2"):
        VMoNF(FlowMixture(Gaussian(3, 2))).plot(rows(30, 3), features=features)


def test_an_extent_has_four_ends() -> None:
    with pytest.raises(ValueError, match="left, right, bottom, top"):
        plot_density(VMoNF(FlowMixture(Gaussian(2, 2))), extent=(1, 2))  # type: ignore[arg-type]


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"no table")
    with pytest.raises(ValueError, match="is no table in Parquet"):
        read_table(path)


# Programs around a pair.


def two_blobs(share: float = 0.2) -> Tensor:
    low = round(100 * share)
    return torch.cat((rows(low) - 4, rows(100 - low) + 4)).double()


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
    x, mask = two_blobs(), torch.arange(100) < 40  # 20 rows of each
    model = known("learned")
    found = trained(model, GUIDES[guide](model), lambda: poutine.mask(mask=mask), x)
    torch.testing.assert_close(found, torch.full((2,), 0.5).double(), rtol=0, atol=1e-6)


def test_scaled_rows_count_by_their_scale() -> None:
    scale = torch.where(torch.arange(100) < 20, 4.0, 1.0).double()
    model = known("learned")
    found = trained(model, ExactGuide(model), lambda: poutine.scale(scale=scale), two_blobs())
    torch.testing.assert_close(found, torch.full((2,), 0.5).double(), rtol=0, atol=1e-6)
    whole = known(dist.Dirichlet(torch.ones(2).double()))  # one number scales the prior as well
    found = trained(whole, ExactGuide(whole), lambda: poutine.scale(scale=0.01), two_blobs())
    expected = torch.tensor([21 / 102, 81 / 102]).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_masked_sequences_do_not_count() -> None:
    x = two_blobs(0.8).reshape(50, 2, 2)
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

    x = two_blobs()
    options: dict[str, Any] = {"epochs": 1, "batch_size": 100, "progress": False}
    with pytest.warns(RuntimeWarning, match="count all rows alike"):
        VMoNF(Masked(Gaussian(2, 2).double(), "learned"), ExactGuide()).fit(x, **options)
    weighted = options | {"sample_weight": torch.ones(100)}
    with pytest.warns(RuntimeWarning, match="count all rows alike"):
        VMoNF(Masked(Gaussian(2, 2).double(), "learned"), ExactGuide()).fit(x, **weighted)
    VMoNF(FlowMixture(Gaussian(2, 2).double(), "learned"), ExactGuide()).fit(x, **weighted)

    class Careless(FlowMixture):
        def forward(self, x: Any = None, *args: Any, **rest: Any) -> Any:
            return super().forward(x, *args, **{**rest, "sample_weight": None})

    with pytest.warns(RuntimeWarning, match="count all rows alike"):
        VMoNF(Careless(Gaussian(2, 2).double(), "learned"), ExactGuide()).fit(x, **weighted)
    free = Masked(Gaussian(2, 2).double(), LearnedWeights(2, "gradient").double())
    VMoNF(free, ExactGuide()).fit(x, **options)


@pytest.mark.parametrize("how", ["prune", "bank", "double"])
def test_a_callback_that_replaces_parameters_ends_the_run_in_words(how: str) -> None:
    torch.manual_seed(0)
    x = blobs()
    vmonf = VMoNF(FlowMixture(RealNVP(2, 4)), SoftmaxGuide(MLP(2, 4)))

    def change(progress: Any) -> None:
        if progress.epoch != 1:
            return
        if how == "prune":
            vmonf.prune_(x, below=float(vmonf.predict_proba(x).mean(0).median()))
        elif how == "bank":
            vmonf.model.bank = RealNVP(2, 4)
        else:
            vmonf.double()

    with pytest.raises(ValueError, match="between two fits"):
        vmonf.fit(x, epochs=5, callbacks=change, progress=False)
    assert vmonf.history is not None
    assert len(vmonf.history.epoch) == 2

    def freeze(progress: Any) -> None:
        vmonf.model.bank.requires_grad_(False)

    vmonf.float().fit(x, epochs=3, callbacks=freeze, progress=False)


def test_restarts_without_a_gradient_run() -> None:
    bank = Gaussian(2, 2).requires_grad_(False)
    vmonf = VMoNF(FlowMixture(bank, "learned"))
    history = vmonf.fit(rows(), epochs=2, n_init=2, seed=0, progress=False)
    assert len(history.restarts) == 2
    assert all(map(math.isfinite, history.restarts))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is")
@pytest.mark.parametrize("weights", WEIGHTS)
def test_counts_under_torch_jit_are_refused(weights: str) -> None:
    model = known(WEIGHTS[weights]())
    guide = GUIDES["network"](model)
    jit = JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 0.0}), jit)
    with pytest.raises(ValueError, match="in every step, which torch"):
        svi.step(two_blobs())


def test_ranks_stay_within_the_draws() -> None:
    torch.manual_seed(0)
    true, values = {"m": torch.ones(1000)}, torch.zeros(10_000, 1000)
    assert int(_rank(true["m"], values).max()) == 10_000
    assert int(_rank(true["m"], values).min()) == 10_000
    ties = _rank(torch.zeros(1000), values)
    assert 0 <= int(ties.min()) < 200
    assert 9_800 < int(ties.max()) <= 10_000


@pytest.mark.parametrize("shape", [(33, 99), (99, 33), (51, 51)])
def test_rotations_keep_distances(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    up, across = (side // 2 for side in shape)
    image = torch.zeros(50, 1, *shape)
    image[..., up - 1 : up + 2, across + 11 : across + 14] = 1.0
    turned = AffineImages((1, *shape), rotation=90.0, scale=0.0, shear=0.0, shift=0.0).distorted(
        image
    )
    rows_of, columns_of = torch.meshgrid(
        torch.arange(shape[0]) - up, torch.arange(shape[1]) - across, indexing="ij"
    )
    mass = turned.sum((1, 2, 3))
    y, x = ((turned[:, 0] * place).sum((1, 2)) / mass for place in (rows_of, columns_of))
    torch.testing.assert_close(
        (x.square() + y.square()).sqrt(), torch.full((50,), 12.0), rtol=0, atol=0.1
    )


def test_a_divergence_of_categories_is_exact() -> None:
    p, q = dist.Categorical(torch.tensor([0.5, 0.5])), dist.Categorical(torch.tensor([0.9, 0.1]))
    mean, error = kl_divergence(p, q, seed=0)
    assert abs(float(mean) - float(torch.distributions.kl_divergence(p, q))) < 4 * float(error)


@pytest.mark.parametrize("depth", [1.0, 2.0])
def test_a_shallow_density_is_drawn(depth: float) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(2, 2)))
    plot_density(vmonf, depth=depth, resolution=20, ax=Figure().subplots())
