"""Where a training run takes its rows from."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from pyro_vmonf._utils.columns import warn_of_columns
from pyro_vmonf._utils.evidence import check_evidence, check_sample_weight
from pyro_vmonf._utils.frames import Names, names_of, ordered
from pyro_vmonf._utils.validation import (
    check_context,
    check_context_rows,
    check_gaps,
    floating_buffer,
    has_gaps,
)
from pyro_vmonf._utils.warned import warn
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.training.loaders import LoaderSource, is_streamed, parts_of
from pyro_vmonf.training.rows import Arguments, Source, TensorSource, check_inside

__all__ = [
    "Arguments",
    "LoaderSource",
    "Source",
    "Sources",
    "TensorSource",
    "check_data",
    "fingerprint",
    "in_memory",
    "make_sources",
]


LEAST_WEIGHT, MOST_WEIGHT = 1e-5, 1e18  # on average, of the rows that count


class Sources(NamedTuple):
    """Where the rows of a run come from."""

    train: Source
    labelled: TensorSource | None
    held_out: TensorSource | None
    names: Names | None = None  # of the columns
    whole: Source | None = None  # where training goes through it in two parts

    @property
    def incomplete(self) -> bool:
        """``True`` if rows in memory have missing entries; those of a loader have none."""
        parts = (self.train, self.labelled, self.held_out)
        return any(isinstance(part, TensorSource) and has_gaps(part.x) for part in parts)

    def first_batch(self) -> Arguments | None:
        """Return rows of memory; ``None`` of a loader, which is not read for them."""
        rows = self.train if isinstance(self.train, TensorSource) else None
        return None if rows is None else next(iter(rows.epoch(torch.Generator())))


def in_memory(x: Any, y: Any = None, sample_weight: Any = None) -> tuple[Any, Any, Any]:
    """Return rows, evidence and weights, those of a ``TensorDataset`` taken out of it.

    Raises:
        TypeError: if it holds something else.
        ValueError: if evidence or weights are given twice.
    """
    if not isinstance(x, TensorDataset):
        return x, y, sample_weight
    rows, own_y, own_weight = parts_of(tuple(x.tensors), "x")
    if (own_y is not None and y is not None) or (
        own_weight is not None and sample_weight is not None
    ):
        raise ValueError(
            "the TensorDataset holds y or sample_weight, and they are given beside it as well; "
            "pass them once"
        )
    return (
        rows,
        y if own_y is None else own_y,
        sample_weight if own_weight is None else own_weight,
    )


def check_data(
    model: FlowMixture, x: Any, y: Any, sample_weight: Any, given: Any
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return rows, evidence, weights and context as tensors of the model's kind.

    Raises:
        TypeError: if they have the wrong kind of numbers.
        ValueError: if they do not fit, or there are fewer rows than components.
    """
    like = floating_buffer(model)
    x, y, sample_weight = in_memory(x, y, sample_weight)
    names = model.feature_names or names_of(x)
    x = model.rows(x, weight=sample_weight, missing=True)
    if y is not None:
        y = check_evidence(y, len(x), model.num_components, like)
    if sample_weight is not None:
        sample_weight = check_sample_weight(sample_weight, len(x), like)
        if not bool((sample_weight > 0).any()):
            raise ValueError("sample_weight is zero for every row; some have to count")
        mean = float(sample_weight[sample_weight > 0].double().mean())
        if not LEAST_WEIGHT <= mean <= MOST_WEIGHT:
            small = "vanish beside the eps of Adam, 1e-8, and the fit hardly moves"
            large = "have squares beyond the range of numbers, and no step is finite"
            warn(
                f"the rows that count have a mean weight of {mean:.3g}: gradients of this size "
                f"{small if mean < LEAST_WEIGHT else large}; divide sample_weight by its mean",
                category=UserWarning,
            )
    rows, weight = model.each_row(x, sample_weight)
    check_gaps(rows, names, weight)
    rows = rows if weight is None else rows[weight > 0]
    if len(rows) < model.num_components:
        raise ValueError(
            f"x has {len(rows)} rows but the mixture has {model.num_components} components; "
            "pass at least one row for each component"
        )
    given = check_context_rows(given, len(x), model.context_features, like)
    check_inside(model, x, given, sample_weight)
    if not model.standardizer.fitted:
        warn_of_columns(rows, names)
    return x, y, sample_weight, given


def make_sources(
    model: FlowMixture,
    x: Any,
    y: Any,
    sample_weight: Any,
    given: Any,
    *,
    batch_size: int,
    held_out: float | Tensor,
    by_label: bool,
    interleave: bool,
    generator: torch.Generator,
) -> Sources:
    """Check the data and say where the rows of training, supervision and validation come from."""
    x, y, sample_weight = in_memory(x, y, sample_weight)
    if is_streamed(x):
        nothing_held_out = not isinstance(held_out, Tensor) and held_out == 0
        beside = (y, sample_weight, given)
        if any(v is not None for v in beside) or not nothing_held_out or by_label:
            raise ValueError(
                "y, sample_weight, given, held_out, pretrain_epochs and interleave go with rows "
                "in memory; a DataLoader or data set yields labels and weights as (x, y) or "
                "(x, y, weight)"
            )
        check_context(None, model.context_features)
        return Sources(LoaderSource(x, model, batch_size), None, None)
    names = names_of(ordered(x, model.feature_names))
    x, y, sample_weight, given = check_data(model, x, y, sample_weight, given)
    positions = torch.arange(len(x), device=x.device)
    rows = TensorSource(x, y, sample_weight, batch_size, positions, given)
    train, held = rows.split(held_out, generator)
    if not by_label:
        return Sources(train, None, held, names)
    labelled, others = train.split_by_label()
    if not (interleave and others.size):
        return Sources(train, labelled, held, names)
    labelled.whole = others.whole = train.size
    return Sources(others, labelled, held, names, train)


def fingerprint(sources: Sources, **options: Any) -> dict[str, Any]:
    """Return what a resumed run has to have in common with the one that it goes on with."""
    found: dict[str, Any] = {**options, "rows": sources.train.size}
    kinds = {"": sources.train, "labelled ": sources.labelled, "held-out ": sources.held_out}
    for kind, data in kinds.items():
        for name in ("x", "y", "sample_weight", "given"):
            values = getattr(data, name, None)
            whole: dict[str, float | None] = {}
            if not kind:
                whole = dict.fromkeys(("sum", "order", "gaps"))
            if isinstance(data, TensorSource) and values is not None:
                whole = {"sum": _sum(values), "order": _sum(values * _factors(values))}
                gappy = values.is_floating_point() and has_gaps(values)
                whole["gaps"] = _gaps(values) if gappy else None
            found |= {f"{what} of {kind}{name}": value for what, value in whole.items()}
    return found


def _sum(values: Tensor) -> float:
    """Return the sum of the values that are there."""
    values = values.nan_to_num(0.0) if has_gaps(values) else values
    return float(values.sum(dtype=torch.float64))


def _gaps(values: Tensor) -> int:
    """Return a number that says where entries are missing."""
    return int(_hashed(values.isnan().flatten().nonzero().squeeze(1)).sum())


def _factors(values: Tensor) -> Tensor:
    """Return a factor in [0, 1) for each entry: a sum with them knows the order of the entries."""
    places = torch.arange(values.numel(), device=values.device)
    return (_hashed(places).double() / 2**31).reshape(values.shape)


def _hashed(places: Tensor) -> Tensor:
    return places * 2654435761 % 2**31  # a multiplicative hash (Knuth, 1998)
