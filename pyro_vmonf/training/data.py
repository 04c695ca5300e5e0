"""Where a training run takes its batches from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pyro_vmonf._utils.validation import (
    check_context,
    check_context_rows,
    check_evidence,
    check_rows,
    check_sample_weight,
    floating_buffer,
)
from pyro_vmonf.model import FlowMixture

Arguments = dict[str, Any]  # of one call of model and guide


class Source(Protocol):
    """Rows that can be gone through once an epoch, in batches of the program's arguments."""

    @property
    def size(self) -> int: ...

    @property
    def batches(self) -> int: ...

    @property
    def generators(self) -> list[torch.Generator]: ...

    def epoch(self, generator: torch.Generator) -> Iterator[Arguments]: ...

    def standardize(self, model: FlowMixture) -> None: ...

    def sample(self, count: int) -> TensorSource | None: ...


@dataclass
class TensorSource:
    """Rows in memory, shuffled each epoch.

    Arguments:
        x: rows ``(N, *event_shape)``.
        y: evidence or ``None``.
        sample_weight: weights ``(N,)`` or ``None``.
        batch_size: rows of one step.
        positions: numbers of the rows in the user's data, which terms see as ``index``.
        given: the rows' context ``(N, H)`` or ``None``.
    """

    x: Tensor
    y: Tensor | None
    sample_weight: Tensor | None
    batch_size: int
    positions: Tensor
    given: Tensor | None = None

    @property
    def size(self) -> int:
        return len(self.x)

    @property
    def batches(self) -> int:
        """Steps of one epoch; a last batch of one row joins the one before."""
        whole, rest = divmod(self.size, self.batch_size)
        return max(whole + (rest > 1), 1)

    @property
    def generators(self) -> list[torch.Generator]:
        """Generators of its own that the order of the rows depends on: none."""
        return []

    def standardize(self, model: FlowMixture) -> None:
        """Let the model take the rows' units."""
        model.standardize_(self.x)

    def rows(self, chosen: Tensor) -> TensorSource:
        """Return the source of the rows at ``chosen``."""
        return TensorSource(
            self.x[chosen],
            _at(self.y, chosen),
            _at(self.sample_weight, chosen),
            self.batch_size,
            self.positions[chosen],
            _at(self.given, chosen),
        )

    def arguments(self, chosen: Tensor) -> Arguments:
        """Return one step's arguments for the rows at ``chosen``."""
        return {
            "x": self.x[chosen],
            "y": _at(self.y, chosen),
            "index": self.positions[chosen],
            "size": self.size,
            "sample_weight": _at(self.sample_weight, chosen),
            "given": _at(self.given, chosen),
        }

    def epoch(self, generator: torch.Generator) -> Iterator[Arguments]:
        order = torch.randperm(self.size, generator=generator).to(self.x.device)
        batches = list(order.split(self.batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:  # one row has no batch statistics
            batches[-2:] = [torch.cat(batches[-2:])]
        for chosen in batches:
            yield self.arguments(chosen)

    def in_order(self) -> Iterator[Arguments]:
        """Return batches of all rows, in their own order."""
        for chosen in torch.arange(self.size, device=self.x.device).split(self.batch_size):
            yield self.arguments(chosen)

    def sample(self, count: int) -> TensorSource:
        """Return some of the rows, always the same ones."""
        if self.size <= count:
            return self
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(0))
        return self.rows(order[:count].to(self.x.device))

    def split(
        self, fraction: float | Tensor, generator: torch.Generator
    ) -> tuple[TensorSource, TensorSource | None]:
        """Return training and held-out rows; the latter are ``None`` if the fraction is zero.

        Arguments:
            fraction: of the rows that are held out, or their positions.
            generator: of the choice.

        Raises:
            ValueError: if the fraction leaves either side empty, or there are no such positions.
        """
        if isinstance(fraction, Tensor):
            held = torch.zeros(self.size, dtype=torch.bool, device=self.x.device)
            numbers = fraction.to(self.x.device)
            if (
                numbers.dim() != 1
                or numbers.is_floating_point()
                or not 0 < len(numbers.unique()) == len(numbers) < self.size
                or not bool(((numbers >= 0) & (numbers < self.size)).all())
            ):
                raise ValueError(
                    f"held_out has shape {tuple(fraction.shape)} and dtype {fraction.dtype}; "
                    f"expected a fraction, or distinct positions among the {self.size} rows"
                )
            held[numbers] = True
            return self.rows((~held).nonzero().squeeze(1)), self.rows(numbers)
        if fraction == 0:
            return self, None
        count = round(self.size * fraction)
        if not 0 < count < self.size:
            raise ValueError(
                f"held_out={fraction} of {self.size} rows holds out {count}; expected a fraction "
                "that leaves rows on both sides"
            )
        order = torch.randperm(self.size, generator=generator).to(self.x.device)
        return self.rows(order[count:]), self.rows(order[:count])

    def split_by_label(self) -> tuple[TensorSource, TensorSource]:
        """Return the rows that carry evidence and those that carry none.

        Raises:
            ValueError: if no row carries any.
        """
        if self.y is None:
            labelled = torch.zeros(self.size, dtype=torch.bool, device=self.x.device)
        elif self.y.dim() == 1:
            labelled = self.y >= 0
        else:
            labelled = (self.y != self.y[:, :1]).any(-1)
        if not labelled.any():
            raise ValueError("no row is labelled; pass y with at least one label of 0 or more")
        return self.rows(labelled.nonzero().squeeze(1)), self.rows((~labelled).nonzero().squeeze(1))


def _at(rows: Tensor | None, chosen: Tensor) -> Tensor | None:
    return None if rows is None else rows[chosen]


class LoaderSource:
    """A ``DataLoader`` that yields ``x`` or ``(x, y)``; order and batch size are its own.

    Its rows need not fit in memory. One that does not know how many there are is gone through once
    to count them.
    """

    def __init__(self, loader: DataLoader[Any], model: FlowMixture, like: Tensor) -> None:
        self.loader = loader
        self.model = model
        self.like = like
        self.size = self.batches = 0
        try:
            self.size, self.batches = len(loader.dataset), len(loader)  # type: ignore[arg-type]
        except TypeError:  # an iterable data set
            lengths = [len(batch["x"]) for batch in self.epoch(torch.Generator())]
            self.size, self.batches = sum(lengths), len(lengths)
        if not self.batches:
            raise ValueError("the DataLoader yields no batch; pass one with rows")

    def epoch(self, generator: torch.Generator) -> Iterator[Arguments]:
        for batch in self.loader:
            x, y = batch if isinstance(batch, (tuple, list)) and len(batch) == 2 else (batch, None)
            x = x[0] if isinstance(x, (tuple, list)) else x
            x = check_rows(x, self.model.event_shape, self.like)
            if y is not None:
                y = check_evidence(y, len(x), self.model.num_components, self.like)
            yield {"x": x, "y": y, "size": self.size}

    @property
    def generators(self) -> list[torch.Generator]:
        """The loader's own generators."""
        own = (self.loader.generator, getattr(self.loader.sampler, "generator", None))
        return list({id(g): g for g in own if g is not None}.values())

    def sample(self, count: int) -> TensorSource | None:
        """Return the first rows."""
        batches, found = [], 0
        for batch in self.epoch(torch.Generator()):
            batches.append(batch)
            found += len(batch["x"])
            if found >= count:
                break
        x = torch.cat([batch["x"] for batch in batches])[:count]
        y = None if batches[0]["y"] is None else torch.cat([b["y"] for b in batches])[:count]
        return TensorSource(x, y, None, len(batches[0]["x"]), torch.arange(len(x)))

    def standardize(self, model: FlowMixture) -> None:
        """Let the model take the rows' units, in one pass."""
        model.standardizer.fit_batches_(batch["x"] for batch in self.epoch(torch.Generator()))


class Sources(NamedTuple):
    """Where the rows of a run come from."""

    train: Source
    labelled: TensorSource | None
    held_out: TensorSource | None


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
