"""What comes before a run: data and options checked, and where the rows come from."""

from __future__ import annotations

from types import NoneType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vmonf._utils.contexts import evaluating
from pyro_vmonf._utils.validation import (
    check_context,
    check_context_rows,
    check_evidence,
    check_number,
    check_positive,
    check_rows,
    check_sample_weight,
    floating_buffer,
)
from pyro_vmonf.guides import MarginalGuide, SoftmaxGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.schedules import Cooling, Schedule, as_schedule, check_temperature
from pyro_vmonf.training.data import LoaderSource, Source, TensorSource
from pyro_vmonf.training.trainer import Guide


class Sources(NamedTuple):
    """Where the rows of a run come from."""

    train: Source
    labelled: TensorSource | None
    held_out: TensorSource | None


def check_options(
    model: FlowMixture,
    guide: Guide,
    *,
    epochs: int | None,
    steps: int | None,
    batch_size: int,
    lr: float,
    weight_decay: float,
    max_rejected: int,
    clip_norm: float | None,
    temperature: float | Schedule | Cooling | None,
    sample_weight: Any,
    pretrain_epochs: int,
    held_out: float | Tensor,
    patience: int | None,
    keep: str,
) -> int | None:
    """Refuse what cannot be fitted; return the epochs, of which there are none if steps count.

    Raises:
        ValueError: if options do not fit one another.
    """
    if epochs is not None and steps is not None:
        raise ValueError(f"epochs={epochs} and steps={steps} were both given; pass one of them")
    if epochs is None and steps is None:
        epochs = 100
    check_positive("epochs", 1 if epochs is None else epochs)
    check_positive("steps", 1 if steps is None else steps)
    check_positive("batch_size", batch_size)
    check_positive("max_rejected", max_rejected)
    check_number("lr", lr, zero=True)
    check_number("weight_decay", weight_decay, zero=True)
    if keep not in ("last", "best"):
        raise ValueError(f"keep is {keep!r}; expected 'last' or 'best'")
    nothing_held_out = not isinstance(held_out, Tensor) and held_out == 0
    if patience is not None and nothing_held_out:
        raise ValueError("patience was given without held_out; pass the fraction to hold out")
    if temperature is not None and not isinstance(guide, SoftmaxGuide):
        raise ValueError("temperature was given but the guide has none; use a SoftmaxGuide")
    if not isinstance(temperature, (Cooling, NoneType)):
        check_temperature(as_schedule(temperature)(0))
    if sample_weight is not None and isinstance(guide, MarginalGuide):
        raise ValueError(
            "sample_weight needs a guide with its own c; Pyro sums c out of the model only under "
            "one common weight: use a SoftmaxGuide"
        )
    if clip_norm is not None:
        check_number("clip_norm", clip_norm)
    check_positive("pretrain_epochs", pretrain_epochs, minimum=0)
    check_positive("patience", 1 if patience is None else patience)
    if not isinstance(held_out, Tensor) and check_number("held_out", held_out, zero=True) >= 1:
        raise ValueError(f"held_out is {held_out}; expected a fraction of the rows, below 1")
    if guide.model is not None and guide.model is not model:
        raise ValueError("the guide is bound to another model; pass that one, or a new guide")
    return epochs


def schedule_of(
    guide: Guide, temperature: float | Schedule | Cooling | None, steps: int
) -> Schedule | None:
    """Return the temperature's schedule over a run; ``None`` if the guide has no temperature.

    Raises:
        ValueError: if it ends at no temperature.
    """
    if not isinstance(guide, SoftmaxGuide):
        return None
    schedule = as_schedule(
        Cooling() if temperature is None else temperature,
        steps=steps,
        initial=float(guide.temperature),
    )
    check_temperature(schedule(steps))
    return schedule


def check_data(
    model: FlowMixture, x: Any, y: Any, sample_weight: Any, given: Any
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return rows, evidence, weights and context as tensors of the model's kind.

    Raises:
        TypeError: if they have the wrong kind of numbers.
        ValueError: if they do not fit, or there are fewer rows than components.
    """
    like = floating_buffer(model)
    x = check_rows(x, model.event_shape, like)
    if len(x) < model.num_components:
        raise ValueError(
            f"x has {len(x)} rows but the mixture has {model.num_components} components; "
            "pass at least one row for each component"
        )
    if y is not None:
        y = check_evidence(y, len(x), model.num_components, like)
    if sample_weight is not None:
        sample_weight = check_sample_weight(sample_weight, len(x), like)
    given = check_context_rows(given, len(x), model.context_features, like)
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
    like = floating_buffer(model)
    if isinstance(x, DataLoader):
        nothing_held_out = not isinstance(held_out, Tensor) and held_out == 0
        in_memory = (y, sample_weight, given)
        if any(v is not None for v in in_memory) or not nothing_held_out or by_label:
            raise ValueError(
                "y, sample_weight, given, held_out, pretrain_epochs and interleave go with rows "
                "in memory; a DataLoader yields its labels as (x, y)"
            )
        check_context(None, model.context_features)
        return Sources(LoaderSource(x, model, like), None, None)
    x, y, sample_weight, given = check_data(model, x, y, sample_weight, given)
    positions = torch.arange(len(x), device=x.device)
    rows = TensorSource(x, y, sample_weight, batch_size, positions, given)
    train, held = rows.split(held_out, generator)
    if not by_label:
        return Sources(train, None, held)
    labelled, others = train.split_by_label()
    return Sources(others if interleave and others.size else train, labelled, held)


def start_parts(model: FlowMixture, guide: Guide, probe: dict[str, Any]) -> None:
    """Start the parts of the bank that start from data, by the guide's clusters of some rows."""
    weight = None
    if isinstance(guide, SoftmaxGuide) and not model.context_features:
        with torch.no_grad(), evaluating(guide):
            weight = guide.log_q(probe["x"]).exp()
    model.start_(probe["x"], weight)


def fingerprint(sources: Sources, **options: Any) -> dict[str, Any]:
    """Return what a resumed run has to have in common with the one that it goes on with."""
    data = sources.train
    rows = data.size
    sums: dict[str, float | None] = {}
    if isinstance(data, TensorSource):
        for name in ("x", "y", "sample_weight", "given"):
            values = getattr(data, name)
            sums[f"sum of {name}"] = (
                None if values is None else float(values.sum(dtype=torch.float64))
            )
    return {**options, "rows": rows, **sums}
