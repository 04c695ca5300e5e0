"""Names, plates, traces and parameters of Pyro programs.

No other file touches names of Pyro that begin with an underscore.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.nn import PyroModule
from pyro.params import param_with_module_name
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.runtime import get_plates
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn


class Program(PyroModule):
    """A Pyro module that may join a larger one, also after it has run on its own.

    Pyro refuses that, lest names change under a param store in use; here each run takes the names
    it goes by (:func:`claim_parameters`), so a fitted part can be wrapped, swapped or nested.

    Pyro registers a part's parameters with its store whenever the part is looked up. Where an
    optimiser holds them already, :func:`unregistered` spares that.
    """

    in_program = False  # whether it has sites of its own, or updates by the guide
    _registers = True

    def __getattr__(self, name: str) -> Any:
        if not self._registers:
            part = self.__dict__["_modules"].get(name)
            if part is not None and not isinstance(part, PyroModule):
                return part
        return super().__getattr__(name)

    def _pyro_set_supermodule(self, name: str, context: Any) -> None:
        rename(self, name, context)

    def site(self, name: str) -> str:
        """Return the full name of a site of this module."""
        return f"{self._pyro_name}.{name}" if self._pyro_name else name


class Transparent(Program):
    """A Pyro module whose children carry its own name, and not their attribute's.

    The attributes that :attr:`halves` names are looked up without Pyro.
    """

    halves: tuple[str, ...] = ()

    def __getattr__(self, name: str) -> Any:
        children = self.__dict__.get("_modules", {})
        if name in self.halves and name in children:
            return children[name]
        return super().__getattr__(name)

    def _pyro_set_supermodule(self, name: str, context: Any) -> None:
        self._pyro_name = name
        self._pyro_context = context
        for half in self.children():
            rename(half, name, context)

    def name_children_(self) -> None:
        """Give the children the name of this module."""
        self._pyro_set_supermodule(self._pyro_name, self._pyro_context)


def name_of(module: PyroModule, default: str) -> str:
    """Return the name of a Pyro module; alone it has the default."""
    return module._pyro_name or default


def detached_(module: PyroModule) -> None:
    """Take a Pyro module out of the program that runs now."""
    rename(module, "", PyroModule()._pyro_context)


@contextmanager
def unregistered(*programs: PyroModule) -> Iterator[None]:
    """Run a block in which programs leave their parameters out of Pyro's store.

    Gradients flow as ever, and random parameters stay sites; only ``SVI`` would find nothing to
    train.
    """
    for program in programs:
        program.__dict__["_registers"] = False
    try:
        yield
    finally:
        for program in programs:
            del program.__dict__["_registers"]


def rename(module: nn.Module, name: str, context: Any) -> None:
    """Give a Pyro module and those below it the names that follow from ``name``."""
    if isinstance(module, PyroModule):
        module._pyro_name = name
        module._pyro_context = context
        for key, child in module.named_children():
            rename(child, f"{name}.{key}" if name else key, context)


class Enumerate(EnumMessenger):
    """Pyro's enumeration, which reads the shapes of values and not the values.

    Under ``torch.vmap`` a value has a shape and no data.
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if value is not None:
            value = torch.empty(value.shape, device="meta")
        super()._pyro_post_sample({**msg, "value": value})  # type: ignore[arg-type]


def enumerated_dim(site: dict[str, Any]) -> int | None:
    """Return the dimension on which a traced site is enumerated; ``None`` if it is not."""
    dim: int | None = site["infer"].get("_enumerate_dim")
    return dim


def is_enumerated(value: Tensor, count: int) -> bool:
    """Return whether a value holds all of 0 to K - 1 on a dimension of its own."""
    marked = hasattr(value, "_pyro_categorical_support")
    return marked and value.numel() == count == value.shape[0]


def is_plate(site: dict[str, Any]) -> bool:
    """Return whether a traced site is the subsample of a plate."""
    return isinstance(site["fn"], _Subsample)


def _times(packed: Tensor, factor: Tensor) -> Tensor:
    """Multiply a packed log-density, but for what is impossible."""
    possible = packed > -torch.inf
    safe = torch.where(possible, packed, torch.zeros_like(packed)) * factor
    result = torch.where(possible, safe, packed)
    result._pyro_dims = packed._pyro_dims  # type: ignore[attr-defined]
    return result


def contracted(
    elbo: TraceEnum_ELBO, model: Any, guide: Any, arguments: dict[str, Any]
) -> tuple[Tensor, list[tuple[str, dict[str, Any], int, Tensor]]]:
    """Return the ELBO of ``TraceEnum_ELBO``, and the part of it that each site contributes.

    The part of a site is the derivative of the ELBO by a factor in front of its log-density: the
    expectation of the log-density under the posterior of everything that is enumerated.

    Returns:
        The ELBO, and for each site its name, the site, 1 for the model or −1 for the guide, and its
        expected log-density. Sites that the guide enumerates are left out.
    """
    total: Any = 0.0
    parts: list[tuple[str, dict[str, Any], int, Tensor]] = []
    with torch.enable_grad():
        for model_trace, guide_trace in elbo._get_traces(model, guide, (), arguments):
            found: list[tuple[str, Any, int, Tensor]] = []
            for trace, sign in ((model_trace, 1), (guide_trace, -1)):
                for name, site in trace.nodes.items():
                    if site["type"] != "sample" or is_plate(site):
                        continue
                    if sign < 0 and enumerated_dim(site) is not None:
                        continue
                    factor = torch.ones((), dtype=site["log_prob"].dtype, requires_grad=True)
                    for key in ("log_prob", "unscaled_log_prob"):
                        site["packed"][key] = _times(site["packed"][key], factor)
                    found.append((name, site, sign, factor))
            value = _compute_dice_elbo(model_trace, guide_trace)
            total = total + value
            if found and value.requires_grad:
                derivatives = torch.autograd.grad(
                    value, [f for *_, f in found], retain_graph=True, allow_unused=True
                )
                for (name, site, sign, _), derivative in zip(found, derivatives, strict=True):
                    part = torch.zeros(()) if derivative is None else sign * derivative
                    parts.append((name, site, sign, part))
    return (total if torch.is_grad_enabled() else total.detach()), parts


def in_plate() -> bool:
    """Return whether an enclosing plate is vectorised."""
    return any(frame.vectorized for frame in get_plates())


def free_dim() -> int:
    """Return the first dimension from the right that no enclosing plate holds."""
    taken = {frame.dim for frame in get_plates()}
    return next(dim for dim in itertools.count(-1, -1) if dim not in taken)


@contextmanager
def data_plate(
    name: str,
    x: Tensor | None,
    event_shape: Sequence[int],
    *,
    index: Tensor | None = None,
    size: int | None = None,
    sample_weight: Tensor | None = None,
) -> Iterator[Any]:
    """Enter the plate of the rows, at the first dimension that no enclosing plate holds.

    Arguments:
        name: name of the plate.
        x: rows ``(*, *event_shape)``, or ``None`` to generate.
        event_shape: shape of one row.
        index: positions ``(B,)`` of the rows among ``size``; their own order by default.
        size: number of rows of the whole data set; those given by default.
        sample_weight: non-negative weights that broadcast with ``*``.

    Raises:
        ValueError: if the shape of ``x`` does not fit, or the number of rows cannot be known.
    """
    dim = free_dim()
    rows = None
    if x is not None:
        event_dim = len(event_shape)
        if tuple(x.shape[x.dim() - event_dim :]) != tuple(event_shape):
            raise ValueError(
                f"x has shape {tuple(x.shape)} but one row of the components has shape "
                f"{tuple(event_shape)}; pass x of shape (N, {', '.join(map(str, event_shape))})"
            )
        if x.dim() - event_dim < -dim:
            raise ValueError(
                f"x has shape {tuple(x.shape)}; inside the plates that enclose the mixture its "
                f"rows are on dimension {dim - event_dim}"
            )
        rows = x.shape[dim - event_dim]
    if size is None:
        if rows is None:
            raise ValueError("there is no x; pass size, the number of rows to generate")
        if index is not None:
            raise ValueError("index was given without size; pass size, the rows of the whole data")
        size = rows
    if rows is not None and size < rows:
        raise ValueError(f"size is {size} but x has {rows} rows; pass the rows of the whole data")
    if index is None and rows is not None and rows != size:
        index = torch.arange(rows)
    with pyro.plate(name, size, subsample=index, dim=dim) as positions:
        if sample_weight is None:
            yield positions
        else:
            counted = sample_weight > 0  # Pyro scales by positive numbers only
            weight = sample_weight.where(counted, torch.ones_like(sample_weight))
            mask = poutine.mask(mask=counted)  # type: ignore[call-overload]
            with mask, poutine.scale(scale=weight):
                yield positions


@dataclass(frozen=True)
class Rows:
    """The rows as a guide sees them: the arguments of the call of the program.

    Arguments:
        x: rows ``(*, *event_shape)``.
        y: their labels ``(*)`` or log-likelihoods ``(*, K)``.
        index, size: their positions ``(B,)`` in the whole data set, and its rows.
        sample_weight: their weights, which broadcast with ``*``.
        given: their context ``(*, H)``.
    """

    x: Tensor
    y: Tensor | None
    index: Tensor | None
    size: int | None
    sample_weight: Tensor | None
    given: Tensor | None

    def plate(self, name: str, event_shape: Sequence[int]) -> AbstractContextManager[Any]:
        """Return the plate of the rows: see :func:`data_plate`."""
        return data_plate(
            name,
            self.x,
            event_shape,
            index=self.index,
            size=self.size,
            sample_weight=self.sample_weight,
        )


def log_evidence(y: Tensor, num_components: int, dtype: torch.dtype) -> Tensor:
    """Return what ``y`` says of each row's component, as log p(y|c) of shape ``(*, K)``.

    Arguments:
        y: integer labels ``(*)``, −1 for unlabelled; or log-likelihoods ``(*, K)``, of which those
            that are −∞ rule a component out.
        num_components: number of components *K*.
        dtype: floating dtype of the result.

    Raises:
        ValueError: if log-likelihoods do not have K columns.

    Example:
        >>> log_evidence(torch.tensor([-1, 1]), 2, torch.float32)
        tensor([[0., 0.],
                [-inf, 0.]])
    """
    if y.is_floating_point():
        if y.shape[-1:] != (num_components,):
            raise ValueError(
                f"y holds log-likelihoods of shape {tuple(y.shape)}; expected "
                f"(N, {num_components}), or integer labels of shape (N,)"
            )
        return y.to(dtype)
    classes = torch.arange(num_components, device=y.device)
    excluded = (y.unsqueeze(-1) != classes) & (y.unsqueeze(-1) >= 0)
    return torch.zeros(excluded.shape, dtype=dtype, device=y.device).masked_fill(
        excluded, -torch.inf
    )


def with_evidence(log_q: Tensor, y: Tensor | None) -> Tensor:
    """Return the normalised sum of a log-posterior ``(*, K)`` and the evidence, if there is any."""
    if y is None:
        return log_q
    return (log_q + log_evidence(y, log_q.shape[-1], log_q.dtype)).log_softmax(-1)


def claim_parameters(module: PyroModule) -> None:
    """Take from Pyro's param store what an earlier module of the same names left there.

    Pyro hands a second instance the first one's parameters, and SVI then trains those: the re-run
    cell of a notebook silently does not train.
    """
    store = pyro.get_param_store()
    if not len(store) or not getattr(module, "_registers", True):
        return
    for name, parameter in _site_names(module):
        if name in store and store._params[name] is not parameter:
            del store[name]


def _site_names(module: PyroModule) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters below a Pyro module under the names that Pyro gives them."""
    prefix = f"{module._pyro_name}." if module._pyro_name else ""
    for name, parameter in module.named_parameters(recurse=False):
        yield prefix + name, parameter
    for key, child in module.named_children():
        if isinstance(child, PyroModule):
            yield from _site_names(child)
        else:
            for name, parameter in child.named_parameters():
                yield param_with_module_name(prefix + key, name), parameter
