"""Programs whose ELBO bounds nothing are refused, or a warning says so."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vmonf import ExactGuide, FlowMixture, Gaussian, RandomBank, SoftmaxGuide, VMoNF, select
from pyro_vmonf.nn import MLP

K, D, N = 3, 2, 60
X = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
OPTIONS: dict[str, Any] = {"epochs": 1, "progress": False, "seed": 0}
BOUNDS_NOTHING = "the ELBO bounds nothing"


def refused(vmonf: VMoNF, said: str) -> None:
    before = copy.deepcopy(vmonf.model.state_dict())
    with pytest.raises(ValueError, match=said):
        vmonf.fit(X, **OPTIONS)
    after = vmonf.model.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def point() -> dist.Distribution:
    positive = pyro.param("a", torch.ones(K), constraint=constraints.positive)
    return dist.Delta(positive, event_dim=1)


OFF_SUPPORT: dict[str, Callable[[], dist.Distribution]] = {
    "a point": point,
    "Normal": lambda: dist.Normal(torch.zeros(K), 1.0).to_event(1),
    "LogNormal": lambda: dist.LogNormal(torch.zeros(K), 1.0).to_event(1),
}


@pytest.mark.parametrize("kind", OFF_SUPPORT)
def test_a_posterior_off_the_support_of_its_prior_is_refused(kind: str) -> None:
    def posterior(*_: Any, **__: Any) -> None:
        pyro.sample("weights", OFF_SUPPORT[kind]())

    model = FlowMixture(Gaussian(D, K), dist.Dirichlet(torch.full((K,), 5.0)))
    refused(VMoNF(model, [SoftmaxGuide(MLP(D, K)), posterior]), r"Simplex\(\).*" + BOUNDS_NOTHING)


@pytest.mark.parametrize(
    "prior",
    [dist.Exponential(1.0), dist.HalfNormal(1.0), dist.Beta(1.0, 1.0), dist.Uniform(-0.5, 0.5)],
)
def test_a_normal_posterior_of_parameters_takes_a_prior_on_all_numbers(
    prior: dist.Distribution,
) -> None:
    bank = RandomBank(Gaussian(D, K), prior)
    refused(VMoNF(FlowMixture(bank), SoftmaxGuide(MLP(D, K))), "from all real numbers")


class Own(pyro.nn.PyroModule):
    """A guide of a user's, with what is wrong about it."""

    def __init__(self, wrong: str, outputs: int = K) -> None:
        super().__init__()
        self.net, self.wrong = nn.Linear(D, outputs), wrong

    def log_q(self, x: Tensor) -> Tensor:
        return self.net(x).log_softmax(-1)

    def forward(self, x: Any = None, index: Any = None, size: Any = None) -> None:
        fn = dist.Categorical(logits=self.log_q(x))
        if self.wrong == "no plate":
            pyro.sample("c", fn.to_event(1))
            return
        plate = "rows" if self.wrong == "plate" else "data"
        hidden = poutine.mask(mask=torch.arange(len(x)) % 2 == 0 if self.wrong == "mask" else True)
        with pyro.plate(plate, size or len(x), subsample=index), hidden:
            pyro.sample("c", fn, infer={"enumerate": "parallel"})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("plate", rf"\['rows'\].*model in \['data'\].*{BOUNDS_NOTHING}"),
        ("no plate", rf"in the plates \[\] with 1 event.*{BOUNDS_NOTHING}"),
        ("mask", f"its mask is 0 there and 1 here.*{BOUNDS_NOTHING}"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*is not a part of pyro_vmonf")
def test_a_guide_in_another_plate_or_under_a_mask_is_refused(wrong: str, said: str) -> None:
    refused(VMoNF(FlowMixture(Gaussian(D, K)), Own(wrong)), said)


@pytest.mark.parametrize("outputs", [2, 4])
def test_a_guide_of_other_components_is_refused(outputs: int) -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(D, K)), Own("", outputs))
    refused(vmonf, f"gives {outputs} log-probabilities a row, and the model has 3")


class Rows(FlowMixture):
    """A model with a plate of another name."""

    def forward(self, x: Any = None, y: Any = None, **_: Any) -> Any:
        with pyro.plate("rows", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.weights()))
            return pyro.sample("x", select(self.components(), c), obs=x)


def test_a_model_in_another_plate_than_the_guides_is_refused() -> None:
    refused(VMoNF(Rows(Gaussian(D, K)), ExactGuide()), rf"model in \['rows'\].*{BOUNDS_NOTHING}")


class Scaled(FlowMixture):
    def forward(self, x: Any = None, *args: Any, **options: Any) -> Any:
        with poutine.scale(scale=0.5):
            return super().forward(x, *args, **options)


class Forgetful(FlowMixture):
    def forward(self, x: Any = None, *args: Any, **options: Any) -> Any:
        return super().forward(x, *args, **{**options, "size": None, "index": None})


@pytest.mark.parametrize("guide", [ExactGuide, lambda: SoftmaxGuide(MLP(D, K))])
def test_a_model_that_scales_rows_by_itself_warns(guide: Callable[[], Any]) -> None:
    with pytest.warns(RuntimeWarning, match="its scale is 1 there and 0.5 here"):
        VMoNF(Scaled(Gaussian(D, K)), guide()).fit(X, **OPTIONS)


def test_a_model_that_forgets_the_size_warns() -> None:
    with pytest.warns(RuntimeWarning, match="counts the 20 rows of a batch once, .* stand for 60"):
        VMoNF(Forgetful(Gaussian(D, K))).fit(X, batch_size=20, **OPTIONS)
    for weight in (None, torch.rand(N)):
        guide = None if weight is None else ExactGuide()
        vmonf = VMoNF(FlowMixture(Gaussian(D, K)), guide)
        vmonf.fit(X, batch_size=20, sample_weight=weight, **OPTIONS)
