"""Mixtures as components; components taken out of a pair, put in another order, or doubled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.sharing import is_shared
from pyro_vmonf.contracts import Pair
from pyro_vmonf.distributions.marginal import Marginal
from pyro_vmonf.flows.constant import ConstantDistribution
from pyro_vmonf.flows.stack import Stack
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import Registered, check_follows
from pyro_vmonf.transforms import FlowTransform


def _renumbered(choice: dict[str, Any], numbers: list[int], count: int) -> dict[str, Any]:
    """Return what ``from_data`` chose, in the numbers of the components that are left.

    Without one of them the figures are those of another pair, and only what is known of the data
    stays.
    """
    choice = dict(choice)
    if numbers[-1] != count - 1:  # the background was the last one
        choice.pop("background", None)
    if not {*range(choice.get("components", count))} <= {*numbers}:
        return {
            name: choice[name] for name in ("background", "columns", "missing") if name in choice
        }
    place = {str(before): now for now, before in enumerate(numbers)}
    if "touching" in choice:
        pairs = {
            tuple(sorted(place[name] for name in pair.split(" and "))): share
            for pair, share in choice["touching"].items()
        }
        choice["touching"] = {f"{i} and {j}": share for (i, j), share in pairs.items()}
    return choice


class MixtureComponent(Registered):
    """A mixture as one component of another: the bank whose call returns its marginal.

    Its weights are moved by the gradient, with the other parameters of the component, and need a
    learning rate that suits them; only the weights of the outer mixture follow responsibilities.

    Arguments:
        model: the inner mixture, which trains with the outer one.

    Example:
        >>> from pyro_vmonf import FlowMixture, Gaussian, RealNVP
        >>> inner = FlowMixture(Gaussian(2, 3), "learned")
        >>> outer = FlowMixture([MixtureComponent(inner), RealNVP(2, 4)])
        >>> outer.num_components
        5
    """

    def __init__(self, model: FlowMixture) -> None:
        super().__init__()
        check_follows(model, "MixtureComponent", "mixture")
        self.model = model

    def forward(self, context: Tensor | None = None) -> Marginal:
        if context is None or not self.model.context_features:
            return self.model.mixture(None)
        return self.model.mixture(context.unsqueeze(-2))  # one component of each row


class _Place(NamedTuple):
    """A tensor that has the components along one of its dimensions."""

    part: nn.Module
    name: str
    dim: int = 0

    @property
    def value(self) -> Tensor:
        """The tensor."""
        found: Tensor = getattr(self.part, self.name)
        return found


def _private(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the parts of a module with their names, but for those that the components share."""
    shared: set[nn.Module] = set()
    for name, part in module.named_modules():
        if isinstance(part, FlowTransform) and part.batch_shape == ():
            shared.update(part.modules())
        if part not in shared:
            yield name, part


def per_component(module: nn.Module, count: int) -> list[_Place]:
    """Return the tensors of a bank or of weights that belong to the K components.

    These are the parameters of modules with ``batch_shape (K, …)``, ``components`` or
    ``num_components``, and the buffers that such a module names in ``batched_buffers``. The
    components share a transform with ``batch_shape ()``, and everything in it. They are the
    dimension ``component_dim`` of a module, the first one by default; ``None`` says that they
    cannot change places. A single number belongs to all of them.

    Arguments:
        module: a bank or weights.
        count: number of components *K*.

    Raises:
        ValueError: if a part has parameters and does not say how its components lie in them.
    """
    found: list[_Place] = []
    for name, part in _private(module):
        dim = getattr(part, "component_dim", 0)
        if isinstance(part, (ConstantDistribution, Stack)) or dim is None:
            raise ValueError(
                f"{name or 'the module'} is a {type(part).__name__}, whose components cannot be "
                "taken out or change places: a fixed distribution, such as a stick-breaking prior, "
                "and a list keep their order; build a new mixture of the components that are wanted"
            )
        own = [key for key, _ in part.named_parameters(recurse=False)]
        held = own + [key for key, _ in part.named_buffers(recurse=False)]
        batch_shape = getattr(part, "batch_shape", None)
        size = getattr(part, "components", getattr(part, "num_components", None))
        if held and batch_shape is None and size is None:
            raise ValueError(
                f"{name or 'the module'} is a {type(part).__name__}, which has tensors but no "
                "batch_shape: it cannot be known which of them belong to which component"
            )
        if size == count or (batch_shape and batch_shape[0] == count):
            keys = (*own, *getattr(part, "batched_buffers", ()))
            places = [_Place(part, key, dim) for key in keys]
            found += [place for place in places if place.value.dim()]
    for place in found:
        if place.value.shape[place.dim] != count:
            raise ValueError(
                f"{type(place.part).__name__}.{place.name} has shape {tuple(place.value.shape)}; "
                f"expected {count} components along dimension {place.dim}: name the dimension as "
                f"component_dim of {type(place.part).__name__}, or None if they keep their order"
            )
    return found


@torch.no_grad()
def take_components_(vmonf: Pair, index: Tensor) -> None:
    """Make component *i* of a pair what component ``index[i]`` was.

    A permutation puts components in another order, a part of them leaves the others out.

    Arguments:
        vmonf: the pair; its parameters are new ones where the number of components changes.
        index: distinct numbers of components.

    Raises:
        ValueError: if the numbers are none, repeated or out of range, bank, weights or guide do
            not say which parameters belong to which component, or another pair uses the bank; the
            pair is then as it was.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP, VMoNF
        >>> vmonf = VMoNF(FlowMixture(RealNVP(2, 5)))
        >>> before = vmonf.component_log_prob(torch.zeros(1, 2))
        >>> take_components_(vmonf, torch.tensor([4, 1]))
        >>> bool((vmonf.component_log_prob(torch.zeros(1, 2)) == before[:, [4, 1]]).all())
        True
    """
    count = vmonf.model.num_components
    index = torch.as_tensor(index)
    others = index.is_floating_point() or index.is_complex() or index.dtype is torch.bool
    numbers = [] if others or index.dim() != 1 else index.tolist()
    if not numbers or len(set(numbers)) < len(numbers) or not all(0 <= i < count for i in numbers):
        raise ValueError(
            f"index is {index.tolist()}; expected distinct whole numbers from 0 to {count - 1}"
        )
    index = index.long()
    model, guide = vmonf.model, vmonf.guide
    if is_shared(model.bank):
        raise ValueError(
            "the pair shares its components with the pair that it comes from, or with one that "
            "comes from it by condition() or alone(); take copy.deepcopy of this one first"
        )
    places = per_component(model.bank, count) + per_component(model.weights, count)
    used = {id(value) for value in (*guide.parameters(), *guide.buffers())}
    for place in places:
        if id(place.value) in used:
            raise ValueError(
                f"the guide has the {place.name} of {type(place.part).__name__} as well, so its "
                "outputs follow the components by themselves; give it a copy of its own first, or "
                "build a pair of the components that are wanted"
            )
    guide.take_(index)  # or it refuses, before anything changes
    for place in places:
        value = place.value
        taken = value.detach().index_select(place.dim, index.to(value.device))
        if len(index) == count:
            value.copy_(taken)
        elif isinstance(value, nn.Parameter):
            setattr(place.part, place.name, nn.Parameter(taken, value.requires_grad))
        else:
            setattr(place.part, place.name, taken)
    for _, part in (*_private(model.bank), *_private(model.weights)):
        batch_shape = getattr(part, "batch_shape", None)
        if batch_shape and batch_shape[0] == count:
            setattr(part, "batch_shape", torch.Size((len(index), *batch_shape[1:])))  # noqa: B010
        for name in ("components", "num_components"):
            if getattr(part, name, None) == count:
                setattr(part, name, len(index))
    model.num_components = len(index)
    history = getattr(vmonf, "history", None)
    if history is not None and history.choice:
        history.choice = _renumbered(history.choice, numbers, count)
