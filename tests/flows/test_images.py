"""Banks of flows of images: densities, sharing, sampling, and what ``fit`` starts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from pyro_vmonf import (
    Flow,
    FlowMixture,
    Glow,
    ImageNSF,
    MultiScaleRealNVP,
    PixelFlow,
    SoftmaxGuide,
    VMoNF,
)
from pyro_vmonf.components import take_components_
from pyro_vmonf.distributions import FlowDistribution, select
from pyro_vmonf.nn import ConvEncoder
from pyro_vmonf.transforms import ActNorm, Logit

K, SHAPE = 3, (1, 4, 4)
Make = Callable[..., Flow]
BANKS: dict[str, Make] = {
    "glow": lambda k=K, **a: Glow(SHAPE, k, **{"blocks": 2, "channels": 4, **a}),
    "glow-one-scale": lambda k=K, **a: Glow(SHAPE, k, scales=1, blocks=1, channels=4, **a),
    "nsf": lambda k=K, **a: ImageNSF(SHAPE, k, **{"blocks": 1, "channels": 4, "bins": 3, **a}),
    "realnvp": lambda k=K, **a: MultiScaleRealNVP(SHAPE, k, **{"blocks": 1, "channels": 4, **a}),
    "pixels": lambda k=K, **a: PixelFlow(
        SHAPE, k, **{"blocks": 2, "channels": 4, "depth": 1, "first": 3, "bins": 3, **a}
    ),
    "pixels-squeezed": lambda k=K, **a: PixelFlow(
        SHAPE, k, squeezes=1, shared_trunk=True, channels=8, depth=1, first=3, bins=3, **a
    ),
}
IMAGES = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) * 15  # 0 to 240


@torch.no_grad()
def perturbed(bank: Flow) -> Flow:
    for parameter in bank.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return bank.eval()


def behind_pixels(bank: Flow) -> Flow:
    return Flow([*bank.transforms, Logit(alpha=0.01, event_dim=3)], base=bank.base)  # type: ignore[list-item]


@pytest.mark.parametrize("name", BANKS)
def test_shapes(name: str) -> None:
    flows = BANKS[name]()()
    assert flows.batch_shape == (K,)
    assert flows.event_shape == SHAPE
    assert flows.log_prob(torch.randn(5, 1, *SHAPE)).shape == (5, K)
    assert flows.sample((5,)).shape == (5, K, *SHAPE)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", BANKS)
def test_the_density_is_the_change_of_variables(name: str) -> None:
    flows = perturbed(BANKS[name]())()
    x = torch.randn(2, K, *SHAPE)

    def to_base(rows: Tensor) -> Tensor:
        return flows._pull(rows)[0]

    jacobian = torch.autograd.functional.jacobian(to_base, x).reshape(2 * K, 16, 2 * K, 16)
    blocks = jacobian[range(2 * K), :, range(2 * K)]
    log_det = torch.linalg.slogdet(blocks).logabsdet.reshape(2, K)
    base = torch.distributions.Normal(0.0, 1.0).log_prob(to_base(x)).flatten(-3).sum(-1)
    torch.testing.assert_close(flows.log_prob(x), base + log_det, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(flows.reconstruct(x), x, rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", BANKS)
def test_permuted_components_have_permuted_densities(name: str) -> None:
    vmonf = VMoNF(FlowMixture(perturbed(BANKS[name]())))
    x, order = torch.randn(5, *SHAPE), torch.tensor([2, 0, 1])
    expected = vmonf.component_log_prob(x)[:, order]
    take_components_(vmonf, order)
    torch.testing.assert_close(vmonf.component_log_prob(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", BANKS)
def test_one_component_is_the_flow(name: str) -> None:
    bank = perturbed(BANKS[name]())
    x = torch.randn(5, 1, *SHAPE)
    expected = bank().log_prob(x)
    for k in range(K):
        alone = BANKS[name](1)
        state = {}
        shapes = {key: value.shape for key, value in alone.state_dict().items()}
        for key, value in bank.state_dict().items():
            state[key] = value if value.shape == shapes[key] else value[k : k + 1]
        alone.load_state_dict(state)
        torch.testing.assert_close(alone().log_prob(x)[:, 0], expected[:, k], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["glow", "nsf", "realnvp", "pixels"])
@pytest.mark.parametrize("shared", [0, 1])
def test_what_is_shared_costs_one_component(name: str, shared: int) -> None:
    def count(k: int) -> int:
        return sum(p.numel() for p in BANKS[name](k, shared=shared).parameters())

    private = count(2) - count(1)
    assert count(K) == count(1) + (K - 1) * private
    assert (private < count(1)) == (shared > 0)


def test_a_shared_trunk_costs_one_component() -> None:
    bank = PixelFlow((1, 8, 8), K, channels=8, depth=2, shared_trunk=True)
    own = [n for n, p in bank.named_parameters() if p.shape[:1] == (K,)]
    assert {name.split("network.")[1].split(".")[0] for name in own} == {"last", "place"}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", BANKS)
def test_samples_are_the_images_of_the_base_s(name: str) -> None:
    flows = perturbed(BANKS[name]())()
    assert isinstance(flows, FlowDistribution)
    torch.manual_seed(0)
    x = flows.sample((6,))
    torch.manual_seed(0)
    z = flows.base.sample((6,))
    back, log_det, _ = flows._pull(x)
    torch.testing.assert_close(back, z, rtol=1e-8, atol=1e-8)
    expected = flows.base.log_prob(z) + log_det
    torch.testing.assert_close(flows.log_prob(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bank", [Glow, ImageNSF, MultiScaleRealNVP, PixelFlow])
def test_training_raises_the_density_of_held_out_digits(bank: type[Flow]) -> None:
    x = (IMAGES + torch.rand(IMAGES.shape)) / 256
    flow = behind_pixels(bank((1, 8, 8), K, blocks=1, channels=8))  # type: ignore[call-arg]
    vmonf = VMoNF(FlowMixture(flow), SoftmaxGuide(ConvEncoder((1, 8, 8), K)))
    with torch.no_grad():
        vmonf.model.start_(x[:200])
    before = vmonf.log_prob(x[1500:]).mean()
    vmonf.fit(x[:600], steps=15, batch_size=50, lr=1e-2, seed=0, progress=False)
    assert vmonf.log_prob(x[1500:]).mean() > before + 5  # nats, of 64 pixels
    drawn, _ = vmonf.sample(4, seed=0)
    assert drawn.shape == (4, 1, 8, 8)
    assert (drawn > -0.02).all()
    assert (drawn < 1.02).all()


def norms(vmonf: VMoNF) -> list[ActNorm]:
    return [part for part in vmonf.modules() if isinstance(part, ActNorm)]


def pair() -> VMoNF:
    flow = behind_pixels(Glow((1, 8, 8), K, blocks=1, channels=4))
    return VMoNF(FlowMixture(flow), SoftmaxGuide(ConvEncoder((1, 8, 8), K)))


def test_fit_starts_the_normalisations_once() -> None:
    torch.manual_seed(0)
    vmonf, x = pair(), torch.rand(60, 1, 8, 8)
    assert not any(norm.started for norm in norms(vmonf))
    vmonf.fit(x, steps=1, lr=0.0, seed=0, progress=False)
    assert all(norm.started for norm in norms(vmonf))
    before = [norm.shift.clone() for norm in norms(vmonf)]
    assert any(shift.any() for shift in before)
    vmonf.fit(x, steps=1, lr=0.0, seed=1, progress=False)
    assert all(norm.shift.equal(shift) for norm, shift in zip(norms(vmonf), before, strict=True))


def test_a_refused_fit_starts_nothing() -> None:
    vmonf = pair()
    with pytest.raises(ValueError, match="expected"):
        vmonf.fit(torch.rand(60, 1, 7, 8), steps=1, progress=False)
    with pytest.raises(ValueError, match="batch_size"):
        vmonf.fit(torch.rand(60, 1, 8, 8), steps=1, batch_size=0, progress=False)
    assert not any(norm.started for norm in norms(vmonf))


def test_each_start_of_several_starts_its_own_normalisations() -> None:
    vmonf, x = pair(), torch.rand(60, 1, 8, 8)
    history = vmonf.fit(x, steps=2, n_init=2, seed=0, progress=False)
    assert len(history.restarts) == 2
    assert all(norm.started for norm in norms(vmonf))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", BANKS)
def test_a_truncated_guide_sees_the_same_densities(name: str) -> None:
    flows = perturbed(BANKS[name]())()
    x, c = torch.randn(7, *SHAPE), torch.tensor([0, 2, 2, 1, 0, 1, 2])
    expected = flows.log_prob(x.unsqueeze(1))[range(7), c]
    torch.testing.assert_close(select(flows, c).log_prob(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Glow((28, 28), 3), r"expected \(C, H, W\)"),
        (lambda: Glow((1, 6, 8), 3, scales=2), "2 scales cannot halve"),
        (lambda: Glow((1, 8, 8), 3, shared=9), "shared is 9 of 4 blocks"),
        (lambda: Glow((1, 8, 8), 0), "components"),
        (lambda: PixelFlow((1, 5, 8), 3, squeezes=1), "an even height and width"),
        (lambda: PixelFlow((1, 8, 8), 3, first=2), "kernels have an odd width"),
        (
            lambda: ImageNSF((1, 8, 8), 3, base=torch.distributions.Normal(torch.zeros(3), 1.0)),
            "base has batch_shape",
        ),
    ],
)
def test_refuses_with_a_reason(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
