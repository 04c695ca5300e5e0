"""Batched networks against loops by hand, and the masks of MADE against autograd."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vmonf.nn import MLP, ConvEncoder, Linear
from pyro_vmonf.nn.made import MaskedMLP
from pyro_vmonf.nn.started import Remembered

R, N, K, D = 2, 5, 3, 4

pytestmark = pytest.mark.usefixtures("float64")

BATCH_SHAPES: dict[str, tuple[int, ...]] = {
    "one": (),
    "single-component": (1,),
    "components": (K,),
    "restarts": (R, 1, K),
}
INPUTS: dict[str, tuple[int, ...]] = {
    "point": (D,),
    "rows": (N, D),
    "rows-for-all": (N, 1, D),
    "rows-for-each": (N, K, D),
    "components": (K, D),
    "restarts-for-all": (R, N, 1, D),
    "restarts-for-each": (R, N, K, D),
    "no-rows": (0, 1, D),
}
NETWORKS: dict[str, Callable[..., Linear | MLP | MaskedMLP]] = {
    "linear": lambda **k: Linear(D, 6, **k),
    "mlp-affine": lambda **k: MLP(D, 6, hidden=(), **k),
    "mlp": lambda **k: MLP(D, 6, hidden=(7,), **k),
    "mlp-deep": lambda **k: MLP(D, 6, hidden=(7, 2, 5), **k),
    "masked-affine": lambda **k: MaskedMLP(D, 2, hidden=(), **k),
    "masked-narrow": lambda **k: MaskedMLP(D, 2, hidden=(2,), **k),
    "masked-deep": lambda **k: MaskedMLP(D, 2, hidden=(7, 2, 5), order=(2, 0, 3, 1), **k),
    "single-output": lambda **k: MLP(D, 1, hidden=(1,), **k),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "elu": F.elu,
    "softplus": F.softplus,
}


def broadcasts(*shapes: tuple[int, ...]) -> bool:
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return False
    return True


MEETINGS = [
    (batch, rows)
    for batch, rows in itertools.product(BATCH_SHAPES, INPUTS)
    if broadcasts(BATCH_SHAPES[batch], INPUTS[rows][:-1])
]


def layers_of(network: nn.Module) -> list[tuple[Tensor, Tensor]]:
    layers = [network] if isinstance(network, Linear) else list(network.layers)
    weights = [layer.weight for layer in layers]
    if isinstance(network, MaskedMLP):
        weights = network.masked_weights()
    return [(weight, layer.bias) for weight, layer in zip(weights, layers, strict=True)]


def by_hand(network: nn.Module, x: Tensor, activation: str = "relu") -> Tensor:
    """One row and one network at a time."""
    layers = layers_of(network)
    batch_shape = layers[0][0].shape[:-2]
    shape = torch.broadcast_shapes(x.shape[:-1], batch_shape)
    x = x.expand(*shape, x.shape[-1])
    layers = [(w.expand(*shape, *w.shape[-2:]), b.expand(*shape, -1)) for w, b in layers]
    out = torch.empty(*shape, layers[-1][1].shape[-1])
    for index in itertools.product(*map(range, shape)):
        row = x[index]
        for depth, (weight, bias) in enumerate(layers):
            row = weight[index] @ row + bias[index]
            row = ACTIVATIONS[activation](row) if depth < len(layers) - 1 else row
        out[index] = row
    return out.unflatten(-1, (D, 2)) if isinstance(network, MaskedMLP) else out


@pytest.mark.parametrize(("batch", "rows"), MEETINGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_equals_a_loop(name: str, batch: str, rows: str) -> None:
    network = NETWORKS[name](batch_shape=BATCH_SHAPES[batch])
    x = torch.randn(INPUTS[rows])
    torch.testing.assert_close(network(x), by_hand(network, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", BATCH_SHAPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_a_batch_equal_those_of_a_loop(name: str, batch: str) -> None:
    network = NETWORKS[name](batch_shape=BATCH_SHAPES[batch])
    x = torch.randn(N, 1, D, requires_grad=True)
    inputs = {"x": x, **dict(network.named_parameters())}
    out = network(x)
    weight = torch.randn_like(out)
    found = torch.autograd.grad((out * weight).sum(), list(inputs.values()))
    wanted = torch.autograd.grad((by_hand(network, x) * weight).sum(), list(inputs.values()))
    for key, one, other in zip(inputs, found, wanted, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-11, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}"
        )


@pytest.mark.parametrize("make", [MLP, MaskedMLP])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_the_named_ones(activation: str, make: type[MLP | MaskedMLP]) -> None:
    network = make(D, 2, hidden=(3,), activation=activation, batch_shape=(K,))
    x = torch.randn(N, 1, D)
    torch.testing.assert_close(network(x), by_hand(network, x, activation))


@pytest.mark.parametrize("make", [MLP, MaskedMLP])
def test_an_unknown_activation_is_refused(make: type[MLP | MaskedMLP]) -> None:
    with pytest.raises(ValueError, match=r"activation is 'swish'; choose one of elu, gelu, relu"):
        make(2, 2, activation="swish")


def test_a_batch_starts_with_different_networks() -> None:
    for name, parameter in MLP(D, 6, batch_shape=(K,)).named_parameters():
        assert not torch.isclose(parameter[0], parameter[1]).any(), name


MADES: dict[str, tuple[int, tuple[int, ...], tuple[int, ...] | None]] = {
    "affine": (4, (), None),
    "wide": (4, (9,), None),
    "as-wide": (4, (4,), None),
    "shuffled": (4, (9,), (2, 0, 3, 1)),
    "descending": (4, (9, 8), (3, 2, 1, 0)),
    "deep": (5, (6, 9, 5, 7), (1, 4, 0, 2, 3)),
    "two": (2, (1,), (1, 0)),
    "narrow": (6, (2,), (5, 0, 3, 1, 4, 2)),
    "narrowest": (6, (1,), None),
    "narrow-deep": (6, (9, 2, 9), None),
    "narrow-first": (20, (3, 30), None),
}


@pytest.mark.parametrize("name", MADES)
def test_each_feature_sees_those_before_it_only(name: str) -> None:
    features, hidden, order = MADES[name]
    made = MaskedMLP(
        features, 2, hidden=hidden, order=order, activation="softplus", batch_shape=(K,)
    )
    jacobian = torch.autograd.functional.jacobian(made, torch.randn(features))
    assert jacobian.shape == (K, features, 2, features)
    rank = torch.tensor(order or range(features)).argsort()
    before = (rank[None, :] < rank[:, None])[:, None, :]
    seen = jacobian != 0
    assert not (seen & ~before).any()
    if all(width >= features - 1 for width in hidden):
        assert (seen == before).all()
        made(torch.randn(features)).sum().backward()
        assert all(layer.bias.grad.all() for layer in made.layers), "a unit that nothing sees"
    first = rank.tolist().index(0)
    assert seen[:, rank > 0, :, first].all()


def test_a_single_feature_sees_nothing() -> None:
    made = MaskedMLP(1, 3, hidden=(4,), batch_shape=(K,))
    out = made(torch.randn(N, 1, 1))
    torch.testing.assert_close(out, made.layers[-1].bias.reshape(1, K, 1, 3).expand_as(out))


IMAGES: dict[str, tuple[int, int, int]] = {
    "square": (1, 8, 8),
    "odd": (2, 7, 5),
    "tiny": (1, 1, 3),
    "mnist": (1, 28, 28),
}


@pytest.mark.parametrize("rows", [(), (N,), (R, N), (1,), (0,)])
@pytest.mark.parametrize("name", IMAGES)
def test_images_flat_or_not_are_classified_alike(name: str, rows: tuple[int, ...]) -> None:
    encoder = ConvEncoder(IMAGES[name], K, channels=(3, 4), hidden=6).eval()
    images = torch.randn(*rows, *IMAGES[name])
    out = encoder(images)
    assert out.shape == (*rows, K)
    torch.testing.assert_close(encoder(images.flatten(-3)), out)
    for index in itertools.product(*map(range, rows)):
        alone = encoder.layers(images[index].unsqueeze(0)).squeeze(0)
        torch.testing.assert_close(out[index], alone)


@pytest.mark.parametrize("classes", [K, 28])
def test_images_without_their_channel_are_refused(classes: int) -> None:
    message = r"x has shape \(28, 28, 28\); expected images \(\*, 1, 28, 28\), or flat ones"
    with pytest.raises(ValueError, match=message):
        ConvEncoder((1, 28, 28), classes)(torch.randn(28, 28, 28))


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm1d(4), lambda: nn.Dropout(0.5)])
def test_what_a_network_remembers_no_training_changes(make: Callable[[], nn.Module]) -> None:
    network = Remembered(nn.Sequential(nn.Linear(2, 4), make(), nn.Linear(4, 3)))
    network.remember_()
    x = torch.randn(20, 2)
    before = network.eval().start(x)
    torch.testing.assert_close(before, network(x))
    network.train()
    for _ in range(3):
        network(x + 5)
        assert torch.equal(network.start(x), before)
    assert not network.first.training
    assert network.network.training
