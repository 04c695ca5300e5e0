"""The verbs of a fitted pair, and its files."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyro.distributions import Dirichlet, Normal, StudentT
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

import pyro_vmonf
from pyro_vmonf import (
    MAF,
    NSF,
    AutoregressiveNSF,
    ExactGuide,
    Flow,
    FlowMixture,
    Gaussian,
    Glow,
    ImageNSF,
    MAFMoG,
    MarkovVMoNF,
    MultiScaleRealNVP,
    PixelFlow,
    RandomWeights,
    RealNVP,
    SoftmaxGuide,
    Stack,
    StickBreaking,
    VMoNF,
    constant,
    exponential_decay,
    files,
    linear_decay,
    select,
)
from pyro_vmonf.distortions import Adversarial, AffineImages, Jitter, RandomWalk
from pyro_vmonf.flows import ObservedBank, Replicated, StandardNormal
from pyro_vmonf.nn import MLP, ConvEncoder
from pyro_vmonf.terms import Balance, Batch, Confidence, Consistency, CustomTerm, Term
from pyro_vmonf.training.keywords import FitOptions
from pyro_vmonf.transforms import Affine, BatchNorm, Logit, Permutation, PReLU
from pyro_vmonf.weight_priors import PointPosterior, Posterior
from pyro_vmonf.weights import ConditionedWeights, Weights

K, D, N = 3, 2, 23
# Parts that are made from the arguments of the test below; the others are bases of these.
ALONE = [
    name
    for name, part in files.parts().items()
    if part
    not in (
        ConditionedWeights,
        ObservedBank,
        Batch,
        Term,
        CustomTerm,
        Weights,
        Posterior,
        Flow,
        Replicated,
    )
    and not any(p is not part and issubclass(p, part) for p in files.parts().values())
]


def pair(weights: object = "learned", guided: bool = True) -> VMoNF:
    vmonf = VMoNF(
        FlowMixture(RealNVP(D, K, blocks=2, hidden=(4,)), weights),
        SoftmaxGuide(MLP(D, K, hidden=(5,)), temperature=0.7) if guided else None,
    )
    with torch.no_grad():
        for parameter in vmonf.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    vmonf.model.standardize_(3 + 2 * torch.randn(50, D))
    return vmonf


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("weights", ["uniform", "learned", "random"])
def test_verbs_agree_with_their_formulas(weights: str) -> None:
    vmonf = pair(Dirichlet(torch.tensor([1.0, 2.0, 3.0])) if weights == "random" else weights)
    x = 3 + 2 * torch.randn(N, D)
    units = (x - vmonf.model.standardizer.loc) / vmonf.model.standardizer.scale
    jacobian = vmonf.model.standardizer.scale.log().sum()
    components = vmonf.model.bank().log_prob(units.unsqueeze(1)) - jacobian
    log_pi = vmonf.model.weights.log_mean()
    joint = log_pi + components
    log_q = (vmonf.guide.network(units) / 0.7).log_softmax(-1)
    torch.testing.assert_close(vmonf.component_log_prob(x), components)
    torch.testing.assert_close(vmonf.log_prob(x), joint.logsumexp(-1))
    torch.testing.assert_close(vmonf.predict_proba(x), log_q.exp())
    torch.testing.assert_close(vmonf.predict_proba(x, exact=True), joint.softmax(-1))
    torch.testing.assert_close(vmonf.predict(x), log_q.argmax(-1))
    torch.testing.assert_close(vmonf.predict(x, exact=True), joint.argmax(-1))
    torch.testing.assert_close(vmonf.marginal().log_prob(x), joint.logsumexp(-1))
    if weights == "random":
        drawn = Dirichlet(vmonf.model.weights.posterior.log_concentration.exp()).sample((100_000,))
        mean_log = vmonf.model.weights.mean_log()
        torch.testing.assert_close(drawn.log().mean(0), mean_log, rtol=0.0, atol=0.03)
        joint = mean_log + components
    torch.testing.assert_close(vmonf.elbo(x), (log_q.exp() * (joint - log_q)).sum(-1))


def test_random_weights_count_with_their_mean() -> None:
    weights = Dirichlet(torch.tensor([0.5, 1.0, 4.0]))
    vmonf = pair(weights)
    with torch.no_grad():
        vmonf.model.weights.posterior.log_concentration.copy_(weights.concentration.log())
    x = torch.randn(4, D)
    drawn = weights.sample((200_000,))
    average = (drawn[:, None] * vmonf.component_log_prob(x).exp()).sum(-1).mean(0)
    torch.testing.assert_close(vmonf.log_prob(x).exp(), average, rtol=1e-2, atol=0.0)


@pytest.mark.parametrize("chunk_size", [1, 7, N, 100])
def test_chunks_change_nothing(chunk_size: int) -> None:
    vmonf = pair()
    x, y = torch.randn(N, D), torch.randint(-1, K, (N,))
    torch.testing.assert_close(vmonf.log_prob(x, chunk_size=chunk_size), vmonf.log_prob(x))
    parts = vmonf.predict_proba(x, y, chunk_size=chunk_size)
    torch.testing.assert_close(parts, vmonf.predict_proba(x, y))
    assert not parts.requires_grad


@pytest.mark.parametrize("exact", [True, False])
def test_evidence_enters_the_posterior(exact: bool) -> None:
    vmonf = pair()
    x, noisy = torch.randn(N, D), torch.randn(N, K)
    free = vmonf.predict_proba(x, exact=exact)
    wanted = free * noisy.exp()
    wanted = wanted / wanted.sum(-1, keepdim=True)
    torch.testing.assert_close(vmonf.predict_proba(x, noisy, exact=exact), wanted)
    labels = torch.arange(N) % K
    given = vmonf.predict_proba(x, labels, exact=exact)
    torch.testing.assert_close(given, nn.functional.one_hot(labels, K).to(given))


def test_a_pair_without_a_guide_is_exact() -> None:
    vmonf = pair(guided=False)
    x = torch.randn(N, D)
    torch.testing.assert_close(vmonf.predict_proba(x), vmonf.predict_proba(x, exact=True))
    torch.testing.assert_close(vmonf.elbo(x), vmonf.log_prob(x))


def test_samples_come_from_the_component_they_name() -> None:
    bank = Gaussian(D, K)
    centres = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    bank.set_(centres, torch.eye(D).expand(K, D, D))
    vmonf = VMoNF(FlowMixture(bank, torch.tensor([0.2, 0.5, 0.3])))
    before = torch.get_rng_state()
    x, c = vmonf.sample(2000, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert ((x - centres[c]).norm(dim=-1) < 6).all()
    share = c.bincount(minlength=K) / 2000
    assert (share - torch.tensor([0.2, 0.5, 0.3])).abs().max() < 0.05  # 4.5 standard deviations
    again, _ = vmonf.sample(2000, seed=1)
    assert torch.equal(x, again)
    one, which = vmonf.sample(50, component=2)
    assert (which == 2).all()
    assert ((one - centres[2]).norm(dim=-1) < 6).all()


def test_scores_use_eval_mode_and_put_it_back() -> None:
    layers = [Affine(D, batch_shape=(K,)), BatchNorm(D, batch_shape=(K,))]
    network = nn.Sequential(nn.Linear(D, 8), nn.Dropout(0.5), nn.Linear(8, K))
    vmonf = VMoNF(
        FlowMixture(Flow(layers, base=StandardNormal(D, K))), SoftmaxGuide(network)
    ).train()
    x = torch.randn(N, D)
    state = copy.deepcopy(vmonf.state_dict())
    for verb in (vmonf.log_prob, vmonf.predict_proba, vmonf.elbo, vmonf.component_log_prob):
        assert torch.equal(verb(x), verb(x))
    torch.testing.assert_close(vmonf.log_prob(x)[:5], vmonf.log_prob(x[:5]))
    assert all(part.training for part in vmonf.modules())
    assert all(torch.equal(v, state[k]) for k, v in vmonf.state_dict().items())


BAD: dict[str, tuple[Callable[[VMoNF], object], type[Exception], str]] = {
    "features": (lambda v: v.log_prob(torch.zeros(4, 3)), ValueError, "3 features"),
    "infinite": (lambda v: v.predict(np.array([[0.0, np.inf]])), ValueError, "rows: 0"),
    "empty": (lambda v: v.predict_proba(torch.zeros(0, D)), ValueError, "no rows"),
    "integers": (lambda v: v.component_log_prob(torch.zeros(4, D).int()), TypeError, "int32"),
    "no samples": (lambda v: v.sample(0), ValueError, "num_samples is 0"),
    "no component": (lambda v: v.sample(3, component=3), ValueError, "0 to 2"),
    "chunks": (lambda v: v.log_prob(torch.zeros(4, D), chunk_size=0), ValueError, "chunk_size"),
    "labels": (
        lambda v: v.predict_proba(torch.zeros(4, D), torch.zeros(3).long()),
        ValueError,
        "4 rows",
    ),
    "temperature": (lambda v: v.guide.set_temperature_(-1.0), ValueError, "-1.0"),
    "cold guide": (lambda v: SoftmaxGuide(MLP(D, K), temperature=0.0), ValueError, "positive"),
    "term": (lambda v: type(v.guide.terms[0])(weight=-1.0), ValueError, "-1.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_reason(case: str) -> None:
    action, error, message = BAD[case]
    vmonf = pair()
    state = copy.deepcopy(vmonf.state_dict())
    with pytest.raises(error, match=message):
        action(vmonf)
    assert all(torch.equal(v, state[k]) for k, v in vmonf.state_dict().items())


def chain() -> nn.Module:
    private = {"batch_shape": (K,)}
    layers = [
        PReLU(4, **private),
        Affine(4, **private),
        Permutation(4, order=(3, 1, 0, 2)),
        BatchNorm(4, momentum=0.3, **private),
        Logit(alpha=1e-3),
    ]
    return Flow(layers, base=StandardNormal(4, K))


def image_pair(bank: Any) -> VMoNF:
    shape = (1, 8, 8)
    flow = bank(shape, K, blocks=1, channels=4, shared=1)
    vmonf = VMoNF(
        FlowMixture(Flow([*flow.transforms, Logit(event_dim=3)], base=flow.base)),
        SoftmaxGuide(ConvEncoder(shape, K), top=1),
    )
    vmonf.fit(torch.rand(16, *shape), steps=1, seed=0, progress=False)
    return vmonf


SAVED: dict[str, Callable[[], VMoNF]] = {
    "realnvp": lambda: pair(),
    "fixed weights": lambda: pair(torch.tensor([0.2, 0.3, 0.5])),
    "random weights": lambda: pair(Dirichlet(torch.tensor([0.2, 0.3, 0.5]))),
    "a point": lambda: pair(RandomWeights(torch.ones(K), PointPosterior(torch.ones(K)))),
    "sticks": lambda: pair(StickBreaking.process(K)),
    "updated weights": lambda: pair("updated"),
    "an exact guide": lambda: VMoNF(FlowMixture(Gaussian(D, K)), ExactGuide()),
    "a background": lambda: VMoNF(
        FlowMixture([Gaussian(D, 2), StudentT(3.0, torch.zeros(D), 9.0).to_event(1)])
    ),
    "no guide": lambda: pair(guided=False),
    "gaussian": lambda: VMoNF(FlowMixture(Gaussian(D, K)), SoftmaxGuide(MLP(D, K), [])),
    "maf on gaussians": lambda: VMoNF(FlowMixture(MAF(D, K, base=Gaussian(D, K), blocks=2))),
    "stack": lambda: VMoNF(
        FlowMixture(Stack([NSF(D, 1, bins=4, blocks=2), AutoregressiveNSF(D, 2), Gaussian(D, 1)]))
    ),
    "terms": lambda: VMoNF(
        FlowMixture(RealNVP(D, K, blocks=1)),
        SoftmaxGuide(
            MLP(D, K),
            [
                Consistency(RandomWalk(torch.randn(30, D)), weight=linear_decay(steps=9)),
                Consistency(Adversarial(), weight=exponential_decay(rate=0.1)),
                Consistency(Jitter(0.2)),
                Consistency(AffineImages((1, 2)), weight=constant(2.0)),
                Balance(),
                Confidence(weight=0.1),
            ],
            elbo_gradient=0.5,
        ),
    ),
    "chain": lambda: VMoNF(FlowMixture(chain()), SoftmaxGuide(ConvEncoder((1, 2, 2), K))),
    **{
        f"images-{bank.__name__}": lambda bank=bank: image_pair(bank)
        for bank in (Glow, ImageNSF, MultiScaleRealNVP, PixelFlow)
    },
    "mixtures": lambda: VMoNF(
        FlowMixture(MAFMoG(D, K, mixtures=2, blocks=1)), SoftmaxGuide(MLP(D, K))
    ),
}


@pytest.mark.parametrize("case", SAVED)
def test_files_hold_the_whole_pair(case: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    vmonf = SAVED[case]()
    path = tmp_path / "pair.pt"
    vmonf.save(path)
    before = torch.get_rng_state()
    loaded = VMoNF.load(path)
    assert torch.equal(torch.get_rng_state(), before)
    x = 0.1 + 0.8 * torch.rand(N, *vmonf.model.event_shape)
    assert torch.equal(loaded.log_prob(x), vmonf.log_prob(x))
    assert torch.equal(loaded.predict_proba(x), vmonf.predict_proba(x))
    assert loaded.guide.model is loaded.model
    assert repr(loaded) == repr(vmonf)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pair.pt"]


def test_float64_comes_back_as_float64(tmp_path: Path) -> None:
    vmonf = pair().double()
    vmonf.save(tmp_path / "pair.pt")
    assert VMoNF.load(tmp_path / "pair.pt").log_prob(torch.zeros(1, D)).dtype == torch.float64


@pytest.mark.parametrize("part", ALONE)
def test_parts_keep_their_arguments(part: str) -> None:
    """Saving relies on it: each constructor argument is an attribute of the same name."""
    signature = inspect.signature(files.parts()[part])
    examples: dict[str, Any] = {
        "features": 4,
        "components": 2,
        "in_features": 4,
        "out_features": 2,
        "image_shape": (2, 4, 4),
        "event_shape": (4,),
        "index": torch.tensor([1, 0]),
        "num_components": 2,
        "probs": torch.tensor([0.5, 0.5]),
        "concentration": torch.ones(2),
        "bank": Gaussian(4, 2),
        "network": MLP(4, 2),
        "parts": [Gaussian(4, 1)],
        "transforms": [PReLU(4)],
        "x": torch.randn(20, 2),
        "distort": Jitter(),
        "value": 1.0,
        "rate": 0.1,
        "initial": 1.0,
        "steps": 3,
        "context_features": 2,
        "prior": torch.ones(2),
        "members": [lambda: None],
        "num_groups": 3,
        "observed": torch.tensor([0.5, 0.5]),
        "distribution": Normal(torch.zeros(2), 1.0),
        "model": FlowMixture(Gaussian(4, 2)),
    }
    if "transforms" in signature.parameters:
        examples["base"] = StandardNormal(4, 2)
    if "transition" in signature.parameters:
        examples["initial"] = "uniform"
    if "channels" in signature.parameters and part != "ConvEncoder":
        examples["channels"] = 4
    given = {k: v for k, v in examples.items() if k in signature.parameters}
    built = files.parts()[part](**given)
    for name in signature.parameters:
        assert hasattr(built, name), name


class OwnNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_own_modules_load_into_a_built_pair(tmp_path: Path) -> None:
    def build() -> VMoNF:
        return VMoNF(FlowMixture(RealNVP(D, K, blocks=1)), SoftmaxGuide(OwnNetwork()))

    vmonf, path = build(), tmp_path / "own.pt"
    with pytest.warns(UserWarning, match=r"OwnNetwork.*into=vmonf"):
        vmonf.save(path)
    with pytest.raises(ValueError, match="into=vmonf"):
        VMoNF.load(path)
    loaded = VMoNF.load(path, into=build())
    x = torch.randn(N, D)
    assert torch.equal(loaded.predict_proba(x), vmonf.predict_proba(x))
    with pytest.raises(ValueError, match="does not fit"):
        VMoNF.load(path, into=pair())


def test_draws_in_chunks_are_draws_of_the_mixture() -> None:
    vmonf = pair(torch.tensor([0.2, 0.3, 0.5]))
    x, c = vmonf.sample(5000, seed=1, chunk_size=700)
    assert x.shape == (5000, D)
    torch.testing.assert_close(
        c.bincount(minlength=3) / 5000, torch.tensor([0.2, 0.3, 0.5]), rtol=0, atol=0.03
    )
    again, _ = vmonf.sample(5000, seed=1, chunk_size=700)
    assert torch.equal(again, x)
    one, components = vmonf.sample(9, component=2, chunk_size=4)
    assert one.shape == (9, D)
    assert (components == 2).all()
    with pytest.raises(ValueError, match="chunk_size"):
        vmonf.sample(3, chunk_size=0)


def test_each_verb_has_a_form_with_a_gradient() -> None:
    """The table of docs/program.md."""
    vmonf = pair()
    x, c = torch.randn(5, D), torch.tensor([0, 1, 2, 0, 1])
    vmonf.eval()  # in train() the weights would follow the rows
    loss = TraceEnum_ELBO(max_plate_nesting=1)(vmonf.model, vmonf.guide)(x)
    model = vmonf.model
    forms = [
        (vmonf.marginal().log_prob(x), vmonf.log_prob(x)),
        (model.components().log_prob(x.unsqueeze(-2)), vmonf.component_log_prob(x)),
        (vmonf.guide.log_posterior(x).exp(), vmonf.predict_proba(x)),
        (model.log_posterior(x).exp(), vmonf.predict_proba(x, exact=True)),
        (-loss, vmonf.elbo(x).sum()),
    ]
    for form, verb in forms:
        assert form.requires_grad
        assert not verb.requires_grad
        torch.testing.assert_close(form, verb, rtol=1e-4, atol=1e-4)
    assert select(model.components(), c).rsample().requires_grad


def test_the_verb_shows_the_options_of_fit() -> None:
    """Editors, type checkers and ``help`` know what ``fit`` takes."""
    options = {
        name: parameter
        for name, parameter in inspect.signature(pyro_vmonf.fit).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    typed = {name: kind.__forward_arg__ for name, kind in FitOptions.__annotations__.items()}
    assert typed == {name: parameter.annotation for name, parameter in options.items()}
    shown = inspect.signature(VMoNF.fit).parameters
    assert {name: shown[name] for name in options} == options
    assert set(shown) - set(options) == {"self", "x", "y", "n_init"}
    chain = inspect.signature(MarkovVMoNF.fit).parameters
    assert set(options) - set(chain) == {"given"}
