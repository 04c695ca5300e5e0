"""EM for Gaussians against scikit-learn."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from pyro_vmonf import MAF, FlowMixture, Gaussian, RealNVP, fit_em, information_criteria

K = 3

pytestmark = pytest.mark.usefixtures("float64")

DATA: dict[str, Callable[[], Tensor]] = {
    "apart": lambda: torch.randn(90, 2) + 6 * torch.eye(3, 2).repeat(30, 1),
    "overlapping": lambda: (
        torch.randn(90, 2) * torch.tensor([1.0, 3.0]) + torch.eye(3, 2).repeat(30, 1)
    ),
    "line": lambda: torch.randn(90, 1) + torch.arange(3.0).repeat(30).unsqueeze(1),
    "wide": lambda: torch.randn(200, 5) @ torch.randn(5, 5),
    "raw-units": lambda: torch.randn(90, 2) * torch.tensor([1e3, 1e-2]) + torch.tensor([5e4, 3.0]),
}

# the units of the data, in which scikit-learn works too
raw_em = partial(fit_em, standardize=False)


def mixture(features: int) -> FlowMixture:
    return FlowMixture(Gaussian(features, K), "learned")


@torch.no_grad()
def log_likelihood(model: FlowMixture, x: Tensor) -> float:
    return model.marginal().log_prob(x).mean().item()


def start_for(x: Tensor) -> Tensor:
    return torch.rand(len(x), K).softmax(-1)


def parameters_of(model: FlowMixture) -> dict[str, Any]:
    components = model.bank()
    return {
        "weights": model.weights().exp().detach().numpy(),
        "means": components.loc.detach().numpy(),
        "covariances": components.covariance_matrix.detach().numpy(),
        "precisions": components.precision_matrix.detach().numpy(),
    }


def sklearn_from(model: FlowMixture, **arguments: Any) -> GaussianMixture:
    """Scikit-learn's mixture, about to start from the parameters of ``model``."""
    start = parameters_of(model)
    return GaussianMixture(
        K,
        weights_init=start["weights"],
        means_init=start["means"],
        precisions_init=start["precisions"],
        **arguments,
    )


def fit_quietly(reference: GaussianMixture, x: Tensor) -> GaussianMixture:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return reference.fit(x.numpy())


@pytest.mark.parametrize("ridge", [1e-6, 0.1])
@pytest.mark.parametrize("name", DATA)
def test_every_step_is_that_of_scikit_learn(name: str, ridge: float) -> None:
    x = DATA[name]()
    start, model = start_for(x), mixture(x.shape[1])

    def after(steps: int) -> list[float]:
        return raw_em(
            model, x, responsibilities=start, max_iter=steps, tolerance=-math.inf, ridge=ridge
        )

    after(1)
    reference = sklearn_from(model, max_iter=1, tol=0, warm_start=True, reg_covar=ridge)
    for steps in range(2, 12):
        fit_quietly(reference, x)
        curve = after(steps)
        assert len(curve) == steps
        assert curve[-2] == pytest.approx(reference.lower_bound_, rel=1e-9)
        for key, value in parameters_of(model).items():
            assert value == pytest.approx(getattr(reference, f"{key}_"), rel=1e-5, abs=1e-9), key


@pytest.mark.parametrize(("name", "tolerance"), [("apart", 1e-4), ("apart", 1e-7), ("wide", 1e-4)])
def test_the_converged_likelihood_is_that_of_scikit_learn(name: str, tolerance: float) -> None:
    x = DATA[name]()
    model = mixture(x.shape[1])
    start = torch.nn.functional.one_hot(torch.arange(len(x)) % K, K)
    raw_em(model, x, responsibilities=start, max_iter=1)
    reference = sklearn_from(model, max_iter=2000, tol=tolerance).fit(x.numpy())
    curve = raw_em(model, x, responsibilities=start, max_iter=2000, tolerance=tolerance)
    assert len(curve) == reference.n_iter_ < 2000
    assert curve[-1] == pytest.approx(reference.lower_bound_, abs=1e-9)
    assert curve[-1] == pytest.approx(reference.score(x.numpy()), abs=max(1e-6, tolerance))


@pytest.mark.parametrize("name", DATA)
def test_a_weight_is_a_number_of_copies(name: str) -> None:
    x = DATA[name]()
    copies = torch.arange(len(x)) % 4
    repeated = torch.repeat_interleave(torch.arange(len(x)), copies)
    weighted, plain = mixture(x.shape[1]), mixture(x.shape[1])
    start = start_for(x)
    options: dict[str, Any] = {"max_iter": 20, "tolerance": -math.inf}
    curve = raw_em(weighted, x, responsibilities=start, sample_weight=9.0 * copies, **options)
    expected = raw_em(plain, x[repeated], responsibilities=start[repeated], **options)
    assert curve == pytest.approx(expected, rel=1e-9)
    for key, value in parameters_of(plain).items():
        torch.testing.assert_close(
            torch.as_tensor(parameters_of(weighted)[key]), torch.as_tensor(value), rtol=1e-6, atol=0
        )


def test_rows_without_weight_draw_no_centre() -> None:
    x = torch.cat([torch.randn(30, 2) + 20 * i for i in range(4)])
    weight = (torch.arange(120) < 90).double()
    model = mixture(2)
    raw_em(model, x, sample_weight=weight, seed=0)
    assert model.bank().loc.max() < 45
    assert sorted(model.log_posterior(x[:90:30]).argmax(-1).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("started", [False, True])
def test_rows_without_weight_may_be_anywhere(started: bool) -> None:
    x = DATA["apart"]()
    start = torch.eye(K).repeat(30, 1) if started else None
    far = torch.cat((torch.full((2, 2), 1e300), x))
    options: dict[str, Any] = {"seed": 0, "n_init": 2, "max_iter": 9}
    alone, beside = mixture(2), mixture(2)
    curve = fit_em(alone, x, responsibilities=start, **options)
    more = None if start is None else torch.cat((torch.ones(2, K), start))
    weight = torch.cat((torch.zeros(2), torch.ones(90)))
    found = fit_em(beside, far, responsibilities=more, sample_weight=weight, **options)
    assert found == curve
    for one, other in zip(alone.state_dict().values(), beside.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("name", DATA)
def test_the_likelihood_never_falls(name: str) -> None:
    x = DATA[name]()
    curve = torch.tensor(
        raw_em(mixture(x.shape[1]), x, n_init=3, seed=0, tolerance=0.0, ridge=1e-12)
    )
    assert len(curve) > 3
    assert (curve.diff() >= -1e-9).all()


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("name", DATA)
def test_the_curve_ends_at_the_likelihood_of_the_raw_rows(name: str, standardised: bool) -> None:
    x = DATA[name]()
    model = mixture(x.shape[1])
    if standardised:
        model.standardize_(x)
    curve = raw_em(model, x, seed=0, n_init=2)
    assert curve[-1] == pytest.approx(log_likelihood(model, x), abs=1e-9)


@pytest.mark.parametrize("name", DATA)
def test_standardisation_changes_no_density(name: str) -> None:
    x = DATA[name]()
    raw, standardised = mixture(x.shape[1]), mixture(x.shape[1])
    standardised.standardize_(x)
    start = start_for(x)
    curves = [
        raw_em(m, x, responsibilities=start, max_iter=20, tolerance=-math.inf, ridge=0.0)
        for m in (raw, standardised)
    ]
    assert curves[1] == pytest.approx(curves[0], rel=1e-7)
    new = x[:20] + 0.1 * x.std(0) * torch.randn(20, x.shape[1])
    torch.testing.assert_close(
        standardised.marginal().log_prob(new), raw.marginal().log_prob(new), rtol=1e-6, atol=1e-6
    )


def test_the_best_start_is_kept() -> None:
    x, model = DATA["overlapping"](), mixture(2)
    torch.manual_seed(0)
    alone = [raw_em(model, x, n_init=1)[-1] for _ in range(6)]
    torch.manual_seed(0)
    together = raw_em(model, x, n_init=6)[-1]
    assert alone[0] < max(alone) > alone[-1]
    assert together == max(alone)
    assert log_likelihood(model, x) == pytest.approx(together, abs=1e-12)


def test_clusters_apart_are_found() -> None:
    label = torch.arange(3).repeat(30)
    x = torch.randn(90, 2) + 20 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])[label]
    model = mixture(2)
    raw_em(model, x, seed=0)
    clusters = model.log_posterior(x).argmax(-1)
    assert sorted(clusters[:3].tolist()) == [0, 1, 2]
    assert clusters.equal(clusters[:3][label])


def test_seeds_repeat_and_leave_the_global_generator() -> None:
    x = DATA["overlapping"]()
    before = torch.get_rng_state()
    models = [mixture(2) for _ in range(2)]
    torch.set_rng_state(before)
    curves = [raw_em(model, x, seed=3, n_init=2) for model in models]
    assert torch.get_rng_state().equal(before)
    assert curves[0] == curves[1]
    for key, value in models[0].state_dict().items():
        assert value.equal(models[1].state_dict()[key]), key


def test_as_many_rows_as_components_suffice() -> None:
    x = torch.eye(3, 2) * 10
    model = mixture(2)
    raw_em(model, x, seed=0, ridge=1e-2)
    assert sorted(model.log_posterior(x).argmax(-1).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("name", DATA)
def test_criteria_equal_those_of_scikit_learn(name: str) -> None:
    x = DATA[name]()
    model = mixture(x.shape[1])
    raw_em(model, x, seed=0, n_init=1)
    reference = fit_quietly(sklearn_from(model, max_iter=1), x)
    with torch.no_grad():
        model.bank.set_(torch.as_tensor(reference.means_), torch.as_tensor(reference.covariances_))
        model.weights.logits.copy_(torch.as_tensor(reference.weights_).log())
    for rows in (x, x[:30]):
        criteria = information_criteria(model, rows)
        assert criteria["aic"] == pytest.approx(reference.aic(rows.numpy()), rel=1e-9)
        assert criteria["bic"] == pytest.approx(reference.bic(rows.numpy()), rel=1e-9)
        assert criteria["mdl"] == pytest.approx(criteria["bic"] / 2, rel=1e-12)


def test_criteria_do_not_mind_standardisation() -> None:
    x = DATA["raw-units"]()
    plain = mixture(2)
    standardised = copy.deepcopy(plain)
    standardised.standardize_(x)
    start = start_for(x)
    for model in (plain, standardised):
        raw_em(model, x, responsibilities=start, max_iter=9, ridge=0.0)
    assert information_criteria(plain, x) == pytest.approx(
        information_criteria(standardised, x), rel=1e-7
    )


@pytest.mark.parametrize(("weights", "extra"), [("uniform", 0), ("learned", K - 1)])
def test_criteria_count_the_parameters_of_a_flow(weights: str, extra: int) -> None:
    x = torch.randn(40, 2)
    model = FlowMixture(RealNVP(2, K, blocks=2, hidden=(4,)), weights)
    blocks, networks = 2, 2
    free = blocks * K * networks * ((1 * 4 + 4) + (4 * 1 + 1)) + extra
    total = 40 * log_likelihood(model, x)
    criteria = information_criteria(model, x)
    assert criteria["aic"] == pytest.approx(2 * free - 2 * total)
    assert criteria["bic"] == pytest.approx(free * math.log(40) - 2 * total)


ERRORS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "flow": (
        lambda: raw_em(FlowMixture(RealNVP(2, K, blocks=2), "learned"), torch.randn(9, 2)),
        TypeError,
        "Gaussian",
    ),
    "maf": (
        lambda: raw_em(FlowMixture(MAF(2, K, blocks=2), "learned"), torch.randn(9, 2)),
        TypeError,
        "Gaussian",
    ),
    "fixed-weights": (
        lambda: raw_em(FlowMixture(Gaussian(2, K), "uniform"), torch.randn(9, 2)),
        TypeError,
        "'learned'",
    ),
    "too-few-rows": (lambda: raw_em(mixture(2), torch.randn(2, 2)), ValueError, "x has 2 rows"),
    "features": (lambda: raw_em(mixture(2), torch.randn(9, 3)), ValueError, "3 features"),
    "nan": (lambda: raw_em(mixture(2), torch.full((9, 2), math.nan)), ValueError, "NaN"),
    "weights": (
        lambda: raw_em(mixture(2), torch.randn(9, 2), sample_weight=torch.ones(8)),
        ValueError,
        r"sample_weight has shape \(8,\) but x has 9 rows",
    ),
    "no-weight": (
        lambda: raw_em(mixture(2), torch.randn(9, 2), sample_weight=torch.zeros(9)),
        ValueError,
        "zero for every row",
    ),
    "n_init": (lambda: raw_em(mixture(2), torch.randn(9, 2), n_init=0), ValueError, "n_init is 0"),
    "max_iter": (
        lambda: raw_em(mixture(2), torch.randn(9, 2), max_iter=0),
        ValueError,
        "max_iter is 0",
    ),
    "responsibilities": (
        lambda: raw_em(mixture(2), torch.randn(9, 2), responsibilities=torch.ones(9, K + 1)),
        ValueError,
        r"responsibilities have shape \(9, 4\); expected \(9, 3\)",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_what_was_given(name: str) -> None:
    call, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call()


def test_ordinary_units_are_standardised_first() -> None:
    x = torch.cat([torch.randn(60, 2) + 8 * i for i in range(K)])
    one, other = mixture(2), mixture(2)
    curve = fit_em(one, x, seed=0)
    shifted = fit_em(other, 1e4 * x + 1e5, seed=0)
    assert shifted[-1] + 2 * math.log(1e4) == pytest.approx(curve[-1], abs=1e-3)
    assert one.standardizer.fitted


@pytest.mark.parametrize(
    "arguments",
    [{"ridge": 0.0}, {"responsibilities": torch.full((9, K), torch.nan)}],
    ids=["singular", "nan"],
)
def test_a_failed_fit_changes_nothing(arguments: dict[str, Any]) -> None:
    model = mixture(2)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"singular|NaN"):
        fit_em(model, torch.ones(9, 2), **arguments)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
