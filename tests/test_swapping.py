"""Every bank with all weights, every guide and every verb: the table of ``docs/swapping.md``."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import pickle
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, TraceEnum_ELBO, infer_discrete
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.poutine.runtime import get_plates
from torch import Tensor, nn

from pyro_vmonf import (
    MAF,
    NSF,
    ExactGuide,
    FlowMixture,
    GammaDirichlet,
    Gaussian,
    MarginalGuide,
    MixtureComponent,
    RandomBank,
    RandomWeights,
    RealNVP,
    Replicated,
    RotatedRealNVP,
    SoftmaxGuide,
    StickBreaking,
    VMoNF,
)
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf.guides import drawn
from pyro_vmonf.metrics import accuracy
from pyro_vmonf.nn import MLP
from pyro_vmonf.program import with_evidence
from pyro_vmonf.weight_priors import PointPosterior

K, D, N = 3, 2, 12
X = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, *[-1] * (N - 3)])


def zuko_flow() -> nn.Module:
    import zuko

    return zuko.flows.MAF(D, transforms=1, hidden_features=(4,))


class OwnFlow(nn.Module):
    """A user's module: one distribution, of batch shape ()."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(D))

    def forward(self) -> dist.TorchDistribution:
        return dist.StudentT(5.0, self.loc, torch.ones(D)).to_event(1)


def background() -> dist.TorchDistribution:
    wide = dist.StudentT(torch.tensor(2.0), torch.zeros(D), 5 * torch.ones(D), validate_args=False)
    return wide.to_event(1)


BANKS: dict[str, Callable[[], Any]] = {
    "Gaussian": lambda: Gaussian(D, K),
    "RealNVP": lambda: RealNVP(D, K, blocks=2, hidden=(4,)),
    "MAF": lambda: MAF(D, K, blocks=1, hidden=(4,)),
    "NSF": lambda: NSF(D, K, blocks=2, hidden=(4,), bins=3),
    "shared trunk": lambda: RealNVP(D, K, blocks=2, hidden=(4,), shared=1),
    "RotatedRealNVP": lambda: RotatedRealNVP(K, blocks=2, hidden=(4,)),
    "zuko": lambda: Replicated(zuko_flow, K),
    "Pyro": lambda: Replicated(lambda: T.affine_coupling(D, hidden_dims=[4]), K, features=D),
    "own module": lambda: Replicated(OwnFlow, K),
    "mixed list": lambda: [Gaussian(D, 1), RealNVP(D, 1, blocks=1), background()],
    "mixture of mixtures": lambda: [
        MixtureComponent(FlowMixture(Gaussian(D, 2), "learned")),
        RealNVP(D, K - 1, blocks=1),
    ],
    "RandomBank": lambda: RandomBank(RealNVP(D, K, blocks=1, hidden=(3,))),
}


def two_dirichlets() -> dist.TorchDistribution:
    each = dist.Dirichlet(torch.tensor([[5.0, 1.0, 1.0], [1.0, 1.0, 5.0]]))
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), each)


WEIGHTS: dict[str, Callable[[], Any]] = {
    "uniform": lambda: "uniform",
    "learned": lambda: "learned",
    "Dirichlet": lambda: dist.Dirichlet(torch.ones(K)),
    "mixture of Dirichlets": two_dirichlets,
    "GammaDirichlet": lambda: RandomWeights(GammaDirichlet(K)),
    "sticks": lambda: StickBreaking.process(K, 2.0),
    "own prior": lambda: dist.LogisticNormal(torch.zeros(K - 1), torch.ones(K - 1)),
    "point": lambda: RandomWeights(2 * torch.ones(K), posterior=PointPosterior(2 * torch.ones(K))),
}


def auto(model: FlowMixture) -> AutoNormal:
    return AutoNormal(poutine.block(model, hide=["c"]))


class ByHand(pyro.nn.PyroModule):
    """A user's guide of c."""

    def __init__(self) -> None:
        super().__init__()
        self.network = MLP(D, K, hidden=(4,))

    def log_q(self, x: Tensor) -> Tensor:
        return self.network(x).log_softmax(-1)

    def forward(self, x: Tensor, y: Any = None, index: Any = None, **options: Any) -> None:
        logits = with_evidence(self.log_q(x), y)
        weight = options.get("sample_weight")
        dim = next(d for d in (-1, -2) if d not in {f.dim for f in get_plates()})
        size = options.get("size") or x.shape[dim - 1]
        scale = poutine.scale(scale=1.0 if weight is None else weight)
        with pyro.plate("data", size, subsample=index, dim=dim), scale:
            q = dist.Categorical(logits=logits, validate_args=False)
            pyro.sample("c", q, infer={"enumerate": "parallel"})


GUIDES: dict[str, Callable[[FlowMixture], Any]] = {
    "SoftmaxGuide": lambda model: SoftmaxGuide(MLP(D, K, hidden=(4,))),
    "SoftmaxGuide(top=2)": lambda model: SoftmaxGuide(MLP(D, K, hidden=(4,)), top=2),
    "ExactGuide": lambda model: ExactGuide(),
    "none": lambda model: None,
    "own module": lambda model: ByHand(),
    "AutoNormal": auto,
    "AutoDelta": lambda model: AutoDelta(poutine.block(model, hide=["c"])),
    "SoftmaxGuide, AutoNormal": lambda model: [SoftmaxGuide(MLP(D, K)), auto(model)],
}


@functools.cache
def fitted(bank: str, weights: str, guide: str) -> VMoNF:
    with local_seed(0):
        model = FlowMixture(BANKS[bank](), WEIGHTS[weights]())
        vmonf = VMoNF(model, GUIDES[guide](model))
        vmonf.fit(X, epochs=1, progress=False, seed=0)
    return vmonf


def elbo(vmonf: VMoNF, nesting: int = 1) -> TraceEnum_ELBO:
    return TraceEnum_ELBO(max_plate_nesting=nesting, num_particles=1)


def trained(vmonf: VMoNF, step: Callable[[], object]) -> None:
    before = [p.detach().clone() for p in vmonf.parameters()]
    step()
    moved = [not torch.equal(p, old) for p, old in zip(vmonf.parameters(), before, strict=True)]
    assert any(moved)


def fit(vmonf: VMoNF) -> None:
    own = copy.deepcopy(vmonf)
    history = None

    def run() -> None:
        nonlocal history
        history = own.fit(X, Y, epochs=1, progress=False, seed=0)

    trained(own, run)
    assert history is not None
    assert torch.tensor(history.elbo).isfinite().all()


def by_svi(vmonf: VMoNF) -> None:
    own = copy.deepcopy(vmonf)
    svi = SVI(own.model, own.guide, pyro.optim.Adam({"lr": 0.01}), elbo(own))
    trained(own, lambda: svi.step(X, Y))


def by_module(vmonf: VMoNF) -> None:
    own = copy.deepcopy(vmonf)
    loss = elbo(own)(own.model, own.guide)
    optimizer = torch.optim.Adam(own.parameters(), lr=0.01)

    def step() -> None:
        loss(X).backward()
        optimizer.step()

    trained(own, step)


def formula(vmonf: VMoNF) -> None:
    """The ELBO by the verb equals the sum over c written out."""
    joint = vmonf.model.weights.mean_log() + vmonf.component_log_prob(X)
    q = vmonf.predict_proba(X)
    expected = (q * (joint - q.clamp_min(1e-38).log())).sum(-1)
    if vmonf.guide.exact:
        assert q.allclose(vmonf.predict_proba(X, exact=True))
    if isinstance(vmonf.guide, MarginalGuide):
        expected = joint.logsumexp(-1)
    if isinstance(vmonf.guide, ExactGuide):
        expected = (q * (joint - q.clamp_min(1e-38).log())).sum(-1)
    torch.testing.assert_close(vmonf.elbo(X), expected.detach(), rtol=1e-4, atol=1e-4)


def scores(vmonf: VMoNF) -> None:
    log_pi = vmonf.model.weights.log_mean().detach()
    joint = log_pi + vmonf.component_log_prob(X)
    torch.testing.assert_close(vmonf.log_prob(X), joint.logsumexp(-1))
    torch.testing.assert_close(vmonf.predict_proba(X, exact=True), joint.softmax(-1))
    assert torch.equal(vmonf.predict(X), vmonf.predict_proba(X).argmax(-1))
    labelled = vmonf.predict_proba(X, Y)
    assert labelled[:3].allclose(torch.eye(K))


def draws(vmonf: VMoNF) -> None:
    x, c = vmonf.sample(9, seed=0)
    assert x.shape == (9, D)
    assert c.shape == (9,)
    assert x.isfinite().all()
    assert (vmonf.sample(4, component=1)[1] == 1).all()


def marginal(vmonf: VMoNF) -> None:
    for frozen in (True, False):
        mixture = vmonf.marginal(frozen=frozen)
        torch.testing.assert_close(mixture.log_prob(X).detach(), vmonf.log_prob(X))
        assert mixture.sample((5,)).shape == (5, D)


def predictive(vmonf: VMoNF) -> None:
    drawn = Predictive(vmonf.model, num_samples=2)(size=5)
    assert drawn["x"].shape == (2, 5, D)
    both = Predictive(vmonf.model, guide=vmonf.guide, num_samples=2, return_sites=("c",))(X)
    assert both["c"].shape == (2, N)


def conditioned(vmonf: VMoNF) -> None:
    c = torch.arange(N) % K
    trace = poutine.trace(poutine.condition(vmonf.model, {"c": c})).get_trace(X)
    trace.compute_log_prob()
    assert trace.nodes["x"]["log_prob"].shape == (N,)
    if "weights" in trace.nodes:
        probs = torch.tensor([0.1, 0.2, 0.7])
        fixed = poutine.trace(poutine.condition(vmonf.model, {"weights": probs})).get_trace(X)
        assert torch.equal(fixed.nodes["weights"]["value"], probs)


def discrete(vmonf: VMoNF) -> None:
    """Plates that hold nothing but c and x: its most probable values are the exact posterior's."""
    log_pi = vmonf.model.weights.log_mean().detach().exp()
    centre = vmonf.guide
    values = {"weights": log_pi} | {
        name: site["value"]
        for name, site in poutine.trace(centre).get_trace(X).nodes.items()
        if name.startswith("bank") and site["type"] == "sample"
    }
    model = poutine.condition(vmonf.model, values)
    found = poutine.trace(infer_discrete(model, first_available_dim=-2, temperature=0)).get_trace(X)
    trace = poutine.trace(poutine.condition(model, {"c": found.nodes["c"]["value"]})).get_trace(X)
    trace.compute_log_prob()
    best = trace.nodes["x"]["log_prob"] + trace.nodes["c"]["log_prob"]
    for c in range(K):
        fixed = poutine.condition(model, {"c": torch.full((N,), c)})
        other = poutine.trace(fixed).get_trace(X)
        other.compute_log_prob()
        assert (best >= other.nodes["x"]["log_prob"] + other.nodes["c"]["log_prob"] - 1e-4).all()


def rendered(vmonf: VMoNF) -> None:
    source = pyro.render_model(vmonf.model, (X,)).source
    assert "data" in source
    assert "x" in source


def named(vmonf: VMoNF) -> None:
    """Nested twice, sites and parameters have full names of their own."""
    two = nn.ModuleList([copy.deepcopy(vmonf), copy.deepcopy(vmonf)])

    class Two(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = two

        def forward(self, x: Tensor) -> None:
            self.first.model(x)
            self.second.model(x)

    larger = Two()
    trace = poutine.trace(larger).get_trace(X)
    sites = [n for n, s in trace.nodes.items() if s["type"] == "sample"]
    assert {"first.c", "first.x", "second.c", "second.x"} <= set(sites)
    assert all(name.startswith(("first", "second")) for name in sites)
    trace.compute_log_prob()
    shapes = [" ".join(line.split()) for line in trace.format_shapes().splitlines()]
    assert f"first.c dist {N} |" in shapes
    assert f"value {N} | {D}" in shapes
    names = [n for n, _ in two[0].named_parameters()]
    assert len(names) == len(set(names))


def outer(vmonf: VMoNF, dim: int) -> str | None:
    """Two data sets side by side cost what they cost one by one."""
    x = torch.randn(2, N, D, generator=torch.Generator().manual_seed(2))
    if isinstance(vmonf.model.bank, RandomBank):
        with pytest.raises(ValueError, match="draws its parameters once"), pyro.plate("outer", 2):
            vmonf.model(x)
        return "refused: a random bank draws its parameters once"
    values = fixed_values(vmonf)
    vmonf = copy.deepcopy(vmonf).eval()  # a loss in train() moves weights in closed form

    def inside(program: Any) -> Callable[[Tensor, Tensor], None]:
        def run(rows: Tensor, y: Tensor) -> None:
            with pyro.plate("outer", 2, dim=dim):
                program(rows, y)

        return run

    values = {**values, "weights_concentration": torch.tensor(1.0)}
    model = poutine.condition(vmonf.model, values)
    guide = poutine.block(vmonf.guide, hide_fn=lambda site: site["name"].startswith("weights"))
    y = torch.stack((Y, Y.flip(0)))  # few of the rows are labelled
    rows = (x, y) if dim == -2 else (x.transpose(0, 1), y.T)
    whole = elbo(vmonf, 2).loss(inside(model), inside(guide), *rows)
    parts = [elbo(vmonf).loss(model, guide, *one) for one in zip(x, y, strict=True)]
    # The weights' prior counts once in each of the two.
    assert whole == pytest.approx(sum(parts), rel=1e-3, abs=1e-2)
    return None


def fixed_values(vmonf: VMoNF) -> dict[str, Tensor]:
    random = isinstance(vmonf.model.weights, RandomWeights)
    return {"weights": vmonf.model.weights.log_mean().detach().exp()} if random else {}


def moved(vmonf: VMoNF) -> None:
    double = copy.deepcopy(vmonf).double()
    x = X.double()
    assert double.log_prob(x).dtype == torch.float64
    assert double.predict_proba(x).dtype == torch.float64
    assert double.sample(3)[0].dtype == torch.float64
    torch.testing.assert_close(double.log_prob(x).float(), vmonf.log_prob(X), rtol=1e-3, atol=1e-3)
    double.fit(x, epochs=1, progress=False)


def elsewhere(vmonf: VMoNF) -> None:
    """Whatever a forward pass reads is on the device that the pair was sent to."""
    there = copy.deepcopy(vmonf).to("meta")
    assert {t.device.type for t in (*there.parameters(), *there.buffers())} == {"meta"}
    if not isinstance(there.model.bank, Replicated):  # foreign code may ask for values
        rows = torch.zeros(N, 1, D, device="meta")
        assert there.model.components().log_prob(rows).device.type == "meta"
    assert there.model.weights.log_mean().device.type == "meta"


def copied(vmonf: VMoNF) -> None:
    twin = copy.deepcopy(vmonf)
    assert torch.equal(twin.log_prob(X), vmonf.log_prob(X))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    assert not torch.equal(twin.log_prob(X), vmonf.log_prob(X))


def pickled(vmonf: VMoNF) -> None:
    twin = pickle.loads(pickle.dumps(vmonf))
    assert torch.equal(twin.log_prob(X), vmonf.log_prob(X))
    assert torch.equal(twin.predict_proba(X), vmonf.predict_proba(X))


def weighted(vmonf: VMoNF) -> str | None:
    own = copy.deepcopy(vmonf)
    weight = torch.rand(N)
    if not own.guide.draws_component:
        with pytest.raises(ValueError, match="sample_weight needs a guide with its own c"):
            own.fit(X, epochs=1, sample_weight=weight, progress=False)
        return "refused: sample_weight needs a guide with its own c"
    trained(own, lambda: own.fit(X, epochs=1, sample_weight=weight, progress=False))
    return None


@functools.cache
def scratch() -> Path:
    return Path(tempfile.mkdtemp())


@pytest.fixture(scope="module", autouse=True)
def swept() -> Iterator[None]:
    yield
    shutil.rmtree(scratch())


def saved(vmonf: VMoNF) -> str | None:
    """A pair of the library's parts loads by itself, and any other into one that is built alike."""
    path = scratch() / "pair"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        vmonf.save(path)
    into = copy.deepcopy(vmonf) if said else None
    if into is not None:
        assert "into=vmonf" in str(said[0].message)
        with torch.no_grad():
            for parameter in into.parameters():
                parameter.add_(0.1)
    loaded = VMoNF.load(path, into=into)
    assert torch.equal(loaded.log_prob(X), vmonf.log_prob(X))
    assert torch.equal(loaded.predict_proba(X), vmonf.predict_proba(X))
    return "works, loaded into a pair that is built alike" if said else None


def reported(vmonf: VMoNF) -> None:
    found = vmonf.report(X)
    torch.testing.assert_close(found.usage, vmonf.predict_proba(X).mean(0), rtol=0, atol=1e-5)
    assert str(found)


VERBS: dict[str, Callable[[VMoNF], str | None]] = {
    "fit": fit,
    "SVI": by_svi,
    "ELBO module": by_module,
    "elbo": formula,
    "predict, log_prob": scores,
    "sample": draws,
    "marginal": marginal,
    "Predictive": predictive,
    "condition": conditioned,
    "infer_discrete": discrete,
    "render_model": rendered,
    "nested names": named,
    "plate on the left": lambda vmonf: outer(vmonf, -2),
    "plate on the right": lambda vmonf: outer(vmonf, -1),
    "float64": moved,
    "device": elsewhere,
    "deepcopy": copied,
    "pickle": pickled,
    "sample_weight": weighted,
    "save, load": saved,
    "report": reported,
}


def cells() -> list[tuple[str, str, str, str]]:
    """Every two of bank, weights, guide and verb meet; ``make matrix`` tests every combination."""
    banks, weights, guides, verbs = list(BANKS), list(WEIGHTS), list(GUIDES), list(VERBS)
    if os.environ.get("WHOLE_MATRIX"):
        return list(itertools.product(banks, weights, guides, verbs))
    return [
        (bank, weight, guides[(i - j) % len(guides)], verb)
        for i, bank in enumerate(banks)
        for j, weight in enumerate(weights)
        for k, verb in enumerate(verbs)
        if (i + j + k) % 7 == 0
    ]


def untested() -> list[tuple[str, str, str, str]]:
    """The cells without those that the file of ``make matrix`` has from a run before."""
    file = Path(os.environ.get("WHOLE_MATRIX", ""))
    lines = file.read_text().splitlines() if file.is_file() else []
    seen = {json.loads(line)[0] for line in lines}
    return [cell for place, cell in enumerate(cells()) if place not in seen]


def test_every_two_parts_meet() -> None:
    kinds = [list(BANKS), list(WEIGHTS), list(GUIDES), list(VERBS)]
    for one, other in itertools.combinations(range(4), 2):
        met = {(cell[one], cell[other]) for cell in cells()}
        assert met == set(itertools.product(kinds[one], kinds[other]))


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a guide of Pyro's give few draws after a fit: a cell is not about their mean."""
    monkeypatch.setattr(drawn, "DRAWS", 16)


@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize(("bank", "weights", "guide", "verb"), untested())
def test_cell(bank: str, weights: str, guide: str, verb: str) -> None:
    outcome = VERBS[verb](fitted(bank, weights, guide)) or "works"
    if file := os.environ.get("WHOLE_MATRIX"):
        with Path(file).open("a") as lines:
            place = cells().index((bank, weights, guide, verb))
            lines.write(f"{json.dumps([place, bank, weights, guide, verb, outcome])}\n")


def random_inside_a_plate() -> None:
    with pyro.plate("outer", 2):
        FlowMixture(RandomBank(RealNVP(D, K, blocks=2)))(torch.zeros(4, 2, D))


def reversed_planar() -> Replicated:
    return Replicated(lambda: T.planar(D), K, features=D, reverse=True)


def conditional() -> FlowMixture:
    return FlowMixture(RealNVP(D, K, context_features=1, blocks=2), context_features=1)


CANNOT: dict[str, Callable[[], object]] = {
    "row weights without a guide's own `c`": lambda: VMoNF(FlowMixture(Gaussian(D, K))).fit(
        X, sample_weight=torch.ones(N), progress=False
    ),
    "a random bank inside a plate": random_inside_a_plate,
    "transforms that cannot score data": lambda: Replicated(lambda: T.planar(D), K, features=D),
    "drawing from reversed transforms without an inverse": lambda: reversed_planar()().sample(),
    "standardising components of bounded support": lambda: FlowMixture(
        dist.Beta(torch.ones(K, D), torch.ones(K, D)).to_event(1)
    ).standardize_(X),
    "components of different event shapes in a list": lambda: FlowMixture(
        [Gaussian(D, 1), Gaussian(D + 1, 1)]
    ),
    "a distribution with parameters as a component": lambda: FlowMixture(
        dist.Normal(nn.Parameter(torch.zeros(K, D)), 1.0).to_event(1)
    ),
    "a prior that is not on the simplex": lambda: FlowMixture(
        Gaussian(D, K), dist.Normal(torch.zeros(K), 1.0)
    ),
    "conditional components without a context": lambda: conditional()(X),
    "a context that nothing takes": lambda: FlowMixture(Gaussian(D, K))(X, given=torch.ones(N, 1)),
    "a guide's network without one logit for each component": lambda: VMoNF(
        FlowMixture(Gaussian(D, K)), SoftmaxGuide(MLP(D, K + 1))
    ),
    "an exact guide bound to no model": lambda: ExactGuide()(X),
    "weights of another K than the bank": lambda: FlowMixture(Gaussian(D, K), torch.ones(K + 1)),
    "rows of another shape than the components": lambda: FlowMixture(Gaussian(D, K))(
        torch.zeros(N, D + 1)
    ),
    "random or updated parts inside a component": lambda: FlowMixture(
        [MixtureComponent(FlowMixture(Gaussian(D, 2), dist.Dirichlet(torch.ones(2)))), background()]
    ),
    "the report of a conditional mixture": lambda: VMoNF(conditional()).report(X),
}
PAGE = (Path(__file__).parent.parent / "docs" / "swapping.md").read_text()
SAID = dict(
    row.removeprefix("| ").removesuffix("` |").split(" | `", 1)
    for row in PAGE.partition("| what | error |\n|---|---|\n")[2].strip().splitlines()
)


@pytest.mark.parametrize("what", CANNOT)
def test_what_cannot_be_says_so(what: str) -> None:
    with pytest.raises((ValueError, NotImplementedError)) as error:
        CANNOT[what]()
    assert SAID[what] in str(error.value)


def test_the_docs_list_what_is_tested() -> None:
    assert list(SAID) == list(CANNOT)
    count = f"{len(BANKS)} × {len(WEIGHTS)} × {len(GUIDES)} × {len(VERBS)} cells"
    assert count in PAGE
    rows = PAGE.partition("| bank | weights | guide | verb |")[2].partition("\n\n")[0]
    cells = [[c.strip() for c in row.split("|")[1:-1]] for row in rows.strip().splitlines()[1:]]
    columns = [[cell for cell in column if cell] for column in zip(*cells, strict=True)]
    for named, tested in zip(columns, (BANKS, WEIGHTS, GUIDES, VERBS), strict=True):
        assert named == list(tested)


def test_the_table_of_outcomes_has_every_cell() -> None:
    """A part or a verb that is new is not in the committed table until ``make matrix`` ran."""
    file = Path(__file__).parent.parent / "benchmarks" / "results" / "matrix.json"
    found = json.loads(file.read_text())
    assert found["verbs"] == list(VERBS)
    rows = itertools.product(BANKS, WEIGHTS, GUIDES)
    assert list(found["cells"]) == [" | ".join(row) for row in rows]
    assert all(outcome.startswith(("works", "refused")) for outcome in found["outcomes"])


def accuracies(names: dict[str, Any]) -> tuple[float, float]:
    """Return the accuracy of the path of the hidden Markov model, and that of single steps."""
    there = names["there"]
    path, alone = (accuracy(names["state"][there], names[n][there]) for n in ("path", "alone"))
    return path, alone


def slopes(names: dict[str, Any]) -> Tensor:
    found: Tensor = names["guide"].median()["slope"].squeeze()
    return found


# The programs of the page, in their order, and what their text says of the result.
PROGRAMS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "A guide of your own": lambda names: (
        names["vmonf"].guide.predicts_by == "the log_q of Guide"
        and bool(names["gap"] < 0.1)
        and names["vmonf"].guide.members[0].units is names["model"].standardizer
        and bool(names["model"].standardizer.loc.abs().min() > 1)
    ),
    "An autoguide beside a softmax network": lambda names: (
        {"weights", "bank.loc"} < names["auto"].median().keys()
        and accuracy(names["truth"], names["vmonf"].predict(names["x"])) > 0.95
        and bool((names["low"] < names["high"]).all())  # of each weight
    ),
    "A hidden Markov model": lambda names: accuracies(names)[0] > accuracies(names)[1] + 0.05,
    "Weights for each group": lambda names: names["found"].allclose(names["shares"], atol=0.1),
    "A mixture of Dirichlets as the prior of the weights": lambda names: (
        # one Dirichlet remains: nine and the twelve rows, of eleven and the twelve rows
        names["vmonf"].model.weights.log_mean().exp()[0].isclose(torch.tensor(21 / 23), atol=0.03)
    ),
    "Missing entries": lambda names: all(
        vmonf.predict(names["x"]).bincount().min() > 80
        for vmonf in (names["exact"], names["flows"])
    ),
    "A VAE whose prior is the mixture": lambda names: (
        names["losses"][-1] < names["losses"][0] - 10
        # a part that does not train is one that SVI does not know
        and all(
            any(value is known for _, known in pyro.get_param_store().named_parameters())
            for value in names["vae"].parameters()
        )
    ),
    "A regression whose residuals are the mixture": lambda names: slopes(names).allclose(
        torch.tensor([1.0, -2.0, 0.5]), atol=0.15
    ),
    "A second site that depends on the cluster": lambda names: (
        pyro.param("level").allclose(torch.tensor([1.0, 4.0]), atol=0.15)
        and accuracy(names["truth"], names["posterior"].argmax(-1))
        > 0.97  # from x alone at most .86
        and all(
            any(value is known for _, known in pyro.get_param_store().named_parameters())
            for value in names["mixture"].parameters()
        )
    ),
}
SECTION = PAGE.partition("## Nine programs\n")[2].partition("\n## ")[0]
CODES = dict(re.findall(r"^### (.*?)\n.*?```python\n(.*?)```", SECTION, re.DOTALL | re.MULTILINE))


def test_the_page_has_the_programs() -> None:
    assert list(CODES) == list(PROGRAMS)


@pytest.mark.parametrize("title", PROGRAMS)
def test_a_program_is_short_and_does_what_the_page_says(title: str) -> None:
    assert len(CODES[title].splitlines()) <= 25
    names: dict[str, Any] = {"__name__": "program"}
    exec(CODES[title], names)
    assert PROGRAMS[title](names)
