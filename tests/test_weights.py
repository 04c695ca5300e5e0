"""Weights: closed-form updates, posteriors that find the truth, errors."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, TraceEnum_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor, nn

from pyro_vmonf import (
    ExactGuide,
    FlowMixture,
    GatedWeights,
    Gaussian,
    LearnedWeights,
    MarginalGuide,
    RandomWeights,
    RealNVP,
    SoftmaxGuide,
    StickBreaking,
    UpdatedWeights,
    VMoNF,
)
from pyro_vmonf import weights as weights_room
from pyro_vmonf.components import take_components_
from pyro_vmonf.nn import MLP
from pyro_vmonf.weight_priors import PointPosterior

# Pyro tells of every frozen parameter.
pytestmark = pytest.mark.filterwarnings("ignore:.*requires_grad=False")

K, D = 3, 2
COUNTS = torch.tensor([120, 60, 20])


def apart(weights: object, k: int = K) -> tuple[FlowMixture, Tensor]:
    """Gaussians so far from each other that the counts of their rows are known."""
    bank = Gaussian(D, k)
    loc = 30 * torch.stack((torch.arange(k).float(), torch.zeros(k)), -1)
    bank.set_(loc, torch.eye(D).expand(k, D, D))
    model = FlowMixture(bank, weights)  # type: ignore[arg-type]
    model.bank.requires_grad_(False)
    rows = loc[torch.arange(K).repeat_interleave(COUNTS)]
    return model, rows + torch.randn(int(COUNTS.sum()), D)


GUIDES: dict[str, Callable[[], object]] = {
    "exact": ExactGuide,
    "none": MarginalGuide,
    "softmax": lambda: SoftmaxGuide(nn.Identity(), temperature=1e-3),  # features that are logits
}


@pytest.mark.parametrize("guide", ["exact", "none"])
def test_updated_weights_are_ems(guide: str) -> None:
    model, x = apart("updated")
    vmonf = VMoNF(model, GUIDES[guide]())  # type: ignore[arg-type]
    model.bank.requires_grad_(True)
    with torch.no_grad():
        model.bank.loc.mul_(0.05)  # so that they overlap
    x = 0.05 * x
    for _ in range(3):
        log_prob = vmonf.component_log_prob(x)
        expected = (model.weights().detach() + log_prob).softmax(-1).mean(0)
        TraceEnum_ELBO(max_plate_nesting=1)(model, vmonf.guide)(x)
        torch.testing.assert_close(model.weights().exp(), expected)


def test_updated_weights_move_by_their_rate_and_keep_their_pseudo_counts() -> None:
    weights = UpdatedWeights(2, rate=0.25, pseudo_count=1.0)
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    weights.update_(lambda: q.log(), None)
    counts = torch.tensor([3.0, 1.0]) / 4
    torch.testing.assert_close(weights().exp(), 0.75 * 0.5 + 0.25 * counts)
    weights = UpdatedWeights(2)
    weights.update_(lambda: torch.eye(2).log(), torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(weights().exp(), torch.tensor([0.75, 0.25]))


def test_updated_weights_stay_where_nothing_is_trained() -> None:
    model, x = apart("updated")
    vmonf = VMoNF(model)
    model.bank.requires_grad_(True)
    with torch.no_grad():
        TraceEnum_ELBO(max_plate_nesting=1).loss(model, vmonf.guide, x)
    vmonf.eval()
    TraceEnum_ELBO(max_plate_nesting=1)(model, vmonf.guide)(x)
    vmonf.log_prob(x)
    torch.testing.assert_close(model.weights().exp(), torch.full((K,), 1 / K))


@pytest.mark.parametrize("n_init", [1, 2])
def test_fit_updates_weights(n_init: int) -> None:
    model, x = apart("updated")
    model.bank.loc.requires_grad_(True)  # something for the optimiser
    vmonf = VMoNF(model, ExactGuide())
    options = {"standardize": False, "progress": False, "seed": 0, "lr": 1e-9}
    vmonf.fit(x, epochs=1, batch_size=len(x), held_out=0.05, **options)  # type: ignore[arg-type]
    assert (model.weights().exp() - COUNTS / COUNTS.sum()).abs().max() < 0.05


def posterior_mean(model: FlowMixture) -> Tensor:
    return model.weights.log_mean().detach().exp()


def by_svi(model: FlowMixture, x: Tensor, guide: object, steps: int = 150) -> None:
    optimizer = pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.01 ** (1 / steps)})
    svi = SVI(model, guide, optimizer, TraceEnum_ELBO(max_plate_nesting=1))
    for _ in range(steps):
        svi.step(x)


@pytest.mark.parametrize("prior", ["dirichlet", "sticks"])
def test_the_conjugate_posterior_leaves_nothing_to_chance(prior: str) -> None:
    """There log p(x, π) − log q(π) is the evidence, whatever π is drawn."""
    model, x = apart(
        dist.Dirichlet(torch.ones(K))
        if prior == "dirichlet"
        else StickBreaking(torch.ones(K - 1), torch.tensor([2.0, 1.0]))  # the same prior
    )
    model, x, counts = model.double(), x.double(), COUNTS.double()
    rest = counts.flip(0).cumsum(0).flip(0)[1:]
    posterior = model.weights.posterior
    with torch.no_grad():
        if prior == "dirichlet":
            posterior.log_concentration.copy_((1 + counts).log())
        else:
            tails = torch.tensor([2.0, 1.0]).double() + rest
            posterior.log_sticks.copy_(torch.stack((1 + counts[:-1], tails)).log())
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    losses = [elbo.loss(model, MarginalGuide(model), x) for _ in range(5)]
    log_prob = model.bank().log_prob(x.unsqueeze(1)).amax(-1).sum()
    norm = (1 + counts).lgamma().sum() - (counts.sum() + K).lgamma() + torch.tensor(2.0).log()
    assert losses == pytest.approx([-float(log_prob + norm)] * 5, rel=1e-7)


def test_any_prior_gets_a_posterior() -> None:
    model, x = apart(dist.LogisticNormal(torch.zeros(K - 1), 10 * torch.ones(K - 1)))
    by_svi(model, x, MarginalGuide(model))
    assert (posterior_mean(model) - COUNTS / COUNTS.sum()).abs().max() < 0.03


def test_a_point_is_the_most_probable() -> None:
    prior = dist.Dirichlet(torch.tensor([5.0, 5.0, 5.0]))
    model, x = apart(RandomWeights(prior, PointPosterior(prior)))
    by_svi(model, x, MarginalGuide(model))
    expected = (COUNTS + 4) / (COUNTS.sum() + 12)  # the mode
    assert (posterior_mean(model) - expected).abs().max() < 2e-3


@pytest.mark.parametrize("auto", [AutoDelta, AutoNormal])
def test_an_autoguide_serves_the_weights(auto: type[AutoDelta | AutoNormal]) -> None:
    model, x = apart(dist.Dirichlet(torch.ones(K)))
    guide = auto(pyro.poutine.block(model, expose=["weights"]))
    by_svi(model, x, guide)
    found = guide.median(x)["weights"].detach()
    assert (found - COUNTS / COUNTS.sum()).abs().max() < 0.03


@pytest.mark.parametrize("prior", ["sticks", "own"])
def test_nuts_over_the_weights(prior: str) -> None:
    priors = {
        "sticks": StickBreaking(torch.ones(K - 1), torch.tensor([2.0, 1.0])),
        "own": dist.LogisticNormal(torch.zeros(K - 1), 10 * torch.ones(K - 1)),
    }
    model, x = apart(priors[prior])
    model.requires_grad_(False).eval()
    mcmc = MCMC(NUTS(model), num_samples=60, warmup_steps=40, disable_progbar=True)
    mcmc.run(x)
    mean = mcmc.get_samples()["weights"].mean(0).squeeze()
    assert (mean - COUNTS / COUNTS.sum()).abs().max() < 0.05


def test_a_sparse_prior_empties_components() -> None:
    sparse, x = apart(dist.Dirichlet(torch.full((6,), 0.05)), k=6)
    by_svi(sparse, x, MarginalGuide(sparse))
    assert posterior_mean(sparse)[K:].sum() < 0.05


def test_gates_follow_the_context() -> None:
    gate = GatedWeights(nn.Linear(1, K), K)
    model, x = apart(gate)
    with pytest.raises(ValueError, match="gated"):
        model(x)
    bank = model.bank
    model = FlowMixture(bank, gate, context_features=1)
    h = torch.arange(K).repeat_interleave(COUNTS).float().unsqueeze(-1) - 1
    vmonf = VMoNF(model, ExactGuide())
    before = vmonf.log_prob(x, given=h).mean()
    vmonf.fit(x, given=h, epochs=60, lr=0.1, batch_size=64, standardize=False, progress=False)
    pi = model.weights(torch.tensor([[-1.0], [1.0]])).exp()
    assert pi[0, 0] > 0.8
    assert pi[1, 2] > 0.8
    assert vmonf.log_prob(x, given=h).mean() > before


ERRORS: dict[str, tuple[Callable[[], object], str]] = {
    "rate": (lambda: UpdatedWeights(3, rate=0.0), "rate is 0.0"),
    "pseudo count": (lambda: UpdatedWeights(3, pseudo_count=-1.0), "pseudo_count is -1.0"),
    "posterior of another K": (
        lambda: RandomWeights(torch.ones(3), PointPosterior(torch.ones(4))),
        "4 weights; expected 3",
    ),
    "gate of another K": (
        lambda: GatedWeights(nn.Linear(2, 4), 3)(torch.zeros(1, 2)),
        r"one logit for each",
    ),
    "no context taken": (
        lambda: FlowMixture(Gaussian(D, K))(torch.zeros(4, D), given=torch.zeros(4, 1)),
        "takes none",
    ),
    "context of another size": (
        lambda: FlowMixture(Gaussian(D, K), GatedWeights(nn.Linear(2, K), K), context_features=2)(
            torch.zeros(4, D), given=torch.zeros(4, 1)
        ),
        r"shape \(4, 1\); expected \(N, 2\)",
    ),
    "unbound exact guide": (lambda: ExactGuide()(torch.zeros(4, D)), "bound to no model"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    action, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        action()


def test_the_exact_guide_has_the_likelihoods_value_and_gradient() -> None:
    model, x = apart(LearnedWeights(K, "gradient"))
    with torch.no_grad():
        model.bank.loc.mul_(0.03)
    model = model.double().requires_grad_(True)
    x = 0.03 * x.double()
    y = torch.full((len(x),), -1)
    y[:5] = 0
    for guide in (ExactGuide(model), MarginalGuide(model)):
        loss = TraceEnum_ELBO(max_plate_nesting=1)(model, guide)(x, y)
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        joint = model.weights() + model.components().log_prob(x.unsqueeze(1))
        excluded = (y[:, None] >= 0) & (y[:, None] != torch.arange(K))
        joint = joint.masked_fill(excluded, -torch.inf)
        direct = -joint.logsumexp(-1).sum()
        wanted = torch.autograd.grad(direct, list(model.parameters()), allow_unused=True)
        torch.testing.assert_close(loss, direct, rtol=1e-10, atol=1e-10)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_one_network_serves_two_mixtures() -> None:
    network = MLP(D, K, hidden=(4,))

    class Two(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.first = VMoNF(FlowMixture(Gaussian(D, K)), SoftmaxGuide(network))
            self.second = VMoNF(FlowMixture(Gaussian(D, K)), SoftmaxGuide(network))

        def forward(self, x: Tensor, z: Tensor) -> None:
            self.first.model(x)
            self.second.model(z)

        def guide(self, x: Tensor, z: Tensor) -> None:
            self.first.guide(x)
            self.second.guide(z)

    two = Two()
    assert len(list(two.parameters())) == 6 + 4
    x, z = torch.randn(20, D), torch.randn(20, D)
    svi = SVI(two, two.guide, pyro.optim.SGD({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))
    before = network.layers[0].weight.detach().clone()
    loss = sum(
        TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(part.model, part.guide, rows)
        for part, rows in ((two.first, x), (two.second, z))
    )
    gradient = torch.autograd.grad(loss, network.layers[0].weight)[0]
    svi.step(x, z)
    moved = network.layers[0].weight.detach() - before
    torch.testing.assert_close(moved, -1e-3 * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n_init", [1, 2])
def test_rows_that_do_not_count_leave_updated_weights_alone(n_init: int) -> None:
    """A batch may hold nothing but rows of weight zero."""
    vmonf = VMoNF(FlowMixture(Gaussian(D, K), "updated"), SoftmaxGuide(MLP(D, K)))
    weight = torch.zeros(60)
    weight[:12] = 1.0
    x = torch.randn(60, D)
    vmonf.fit(
        x, sample_weight=weight, batch_size=4, epochs=2, n_init=n_init, progress=False, seed=0
    )
    torch.testing.assert_close(vmonf.model.weights().exp().sum(), torch.tensor(1.0))
    assert vmonf.log_prob(x).isfinite().all()


def test_updated_weights_of_fewer_components_still_sum_to_one() -> None:
    vmonf = VMoNF(FlowMixture(Gaussian(D, K), "updated"))
    with torch.no_grad():
        vmonf.model.weights.logits.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
    take_components_(vmonf, torch.tensor([1, 2]))
    torch.testing.assert_close(vmonf.model.weights().exp(), torch.tensor([0.6, 0.4]))


def test_torchs_own_dirichlet_is_a_prior() -> None:
    """It is no Pyro distribution, and cannot be drawn from in a program as it is."""
    x = torch.randn(7, 2)
    losses = []
    for module in (torch.distributions, dist):
        torch.manual_seed(0)
        model = FlowMixture(
            RealNVP(2, 3, blocks=2), module.Dirichlet(torch.tensor([1.0, 2.0, 3.0]))
        )
        torch.manual_seed(1)
        losses.append(TraceEnum_ELBO()(model, MarginalGuide(model))(x))
    assert losses[0] == losses[1]


class Drawn(weights_room.Weights):
    """Random weights of a user, without a guide and without a mean."""

    def __init__(self) -> None:
        super().__init__()
        self.num_components = K

    def forward(self, context: Tensor | None = None) -> Tensor:
        return pyro.sample("own", dist.Dirichlet(torch.ones(K))).log()


class Meant(Drawn):
    """The same with both."""

    def guide(self) -> None:
        pyro.sample("own", dist.Dirichlet(torch.ones(K)))

    def log_mean(self, context: Tensor | None = None) -> Tensor:
        return torch.full((K,), 1 / K).log()


def test_own_weights_that_draw_say_what_is_missing() -> None:
    x = torch.randn(30, D)
    vmonf = VMoNF(FlowMixture(Gaussian(D, K), Drawn()), SoftmaxGuide(MLP(D, K)))
    for verb in (vmonf.log_prob, vmonf.elbo):
        with pytest.raises(TypeError, match="Drawn draws 'own' and has no log_mean; write"):
            verb(x)
    with pytest.raises(ValueError, match="own"):
        vmonf.fit(x, epochs=1, progress=False)
    vmonf = VMoNF(FlowMixture(Gaussian(D, K), Meant()), SoftmaxGuide(MLP(D, K)))
    vmonf.fit(x, epochs=1, progress=False)
    assert vmonf.log_prob(x).isfinite().all()
    with pytest.raises(TypeError, match="a module that is no Weights"):
        FlowMixture(Gaussian(D, K), torch.nn.Linear(2, K))


class Returned(weights_room.Weights):
    """Weights of a user that are numbers as they come."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.num_components = K
        self.numbers = torch.nn.Parameter(numbers)

    def forward(self, context: Tensor | None = None) -> Tensor:
        return self.numbers


def test_own_log_weights_have_sum_one_as_the_site_has_them() -> None:
    x = torch.randn(20, D)
    numbers = torch.arange(float(K))
    vmonf = VMoNF(FlowMixture(Gaussian(D, K), Returned(numbers)), ExactGuide())
    known = VMoNF(FlowMixture(vmonf.model.bank, numbers.softmax(0)), ExactGuide())
    torch.testing.assert_close(vmonf.log_prob(x), known.log_prob(x))
    torch.testing.assert_close(vmonf.elbo(x), known.elbo(x))
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(vmonf.model, vmonf.guide, x)
    assert -loss == pytest.approx(float(vmonf.log_prob(x).sum()), rel=1e-5)


@pytest.mark.parametrize("shape", [(1,), (K + 1,), (K, 1), ()])
def test_own_weights_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"Returned returns log-weights of shape .* \(\*, {K}\)"):
        FlowMixture(Gaussian(D, K), Returned(torch.zeros(shape)))


@pytest.mark.parametrize("form", [lambda: dist.Dirichlet(torch.ones(K)), None, {"a": 1}, object()])
def test_what_stands_for_no_weights_is_refused(form: object) -> None:
    said = f"weights is a {type(form).__name__}; expected one of 'uniform'"
    with pytest.raises(TypeError, match=said):
        FlowMixture(Gaussian(D, K), form)


def test_another_prior_wants_other_weights() -> None:
    """The posterior would go on counting on the first one."""
    weights = RandomWeights(torch.ones(3))
    with pytest.raises(ValueError, match="take new weights"):
        weights.prior = dist.Dirichlet(torch.full((3,), 1000.0))
    assert weights.prior().concentration.tolist() == [1.0] * 3
    weights.prior = dist.Dirichlet(torch.ones(3))  # the same
