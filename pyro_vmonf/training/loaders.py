"""Rows that come from a ``DataLoader`` or a data set of torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, default_collate

from pyro_vmonf._utils.columns import warn_of_columns
from pyro_vmonf._utils.contexts import local_seed
from pyro_vmonf._utils.evidence import check_evidence, check_sample_weight
from pyro_vmonf._utils.validation import (
    floating_buffer,
)
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.training.rows import Arguments, TensorSource, check_inside

Parts = tuple[Any, Any, Any]  # rows, evidence and weights
SEEN_ROWS = 4096  # of a pass, that are kept for warnings


def is_streamed(x: Any) -> bool:
    """Return whether rows come in batches, from a loader or a data set."""
    return isinstance(x, DataLoader | Dataset)


def parts_of(batch: Any, name: str = "it") -> Parts:
    """Return rows, evidence and weights of a batch; ``None`` where there are none.

    Raises:
        TypeError: if the batch is something else than ``x``, ``(x,)``, ``(x, y)`` or
            ``(x, y, weight)``.
    """
    if isinstance(batch, tuple | list) and 1 <= len(batch) <= 3:
        x, y, weight = (*batch, None, None)[:3]
        if isinstance(x, Tensor) or not isinstance(x, tuple | list | dict):
            return x, y, weight
        batch = x
    elif not isinstance(batch, tuple | list | dict):
        return batch, None, None
    found = type(batch).__name__
    found += f" with {', '.join(map(repr, batch))}" if isinstance(batch, dict) else ""
    found += f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
    raise TypeError(
        f"{name} is a {found}; expected x, (x, y) or (x, y, weight): build it so, by collate_fn= "
        "of the DataLoader for example, or pass rows in memory with y=, sample_weight= and given="
    )


class LoaderSource:
    """A ``DataLoader`` or a data set that yields ``x``, ``(x, y)`` or ``(x, y, weight)``.

    Order and batch size are the loader's own. A data set is gone through in shuffled batches. The
    rows need not fit in memory. A loader that does not know how many there are is gone through once
    to count them.

    Arguments:
        loader: the loader or the data set.
        model: the mixture.
        batch_size: rows of one step, of a data set.
    """

    def __init__(
        self, loader: DataLoader[Any] | Dataset[Any], model: FlowMixture, batch_size: int
    ) -> None:
        self.loader = loader
        self.model = model
        self.batch_size = batch_size
        self.kinds: tuple[bool, bool] | None = None  # whether batches hold evidence and weights
        self.some: list[Arguments] = []  # rows of the last pass, some of each batch
        with local_seed(0):  # the order of this pass is nobody's
            counted = rows_and_batches(self._loader(torch.Generator()))
            if counted is None:
                lengths = [len(batch["x"]) for batch in self.epoch(torch.Generator())]
                counted = sum(lengths), len(lengths)
        self.size, self.batches = counted
        if not self.batches:
            raise ValueError("the DataLoader yields no batch; pass one with rows")

    def _loader(self, generator: torch.Generator) -> DataLoader[Any]:
        if isinstance(self.loader, DataLoader):
            return self.loader
        shuffle = not isinstance(self.loader, IterableDataset)
        return DataLoader(self.loader, self.batch_size, shuffle=shuffle, generator=generator)

    def epoch(self, generator: torch.Generator) -> Iterator[Arguments]:
        """Return batches.

        Raises:
            TypeError: if a batch holds the wrong kind of numbers.
            ValueError: if a batch does not fit, or there is none.
        """
        seen, some = 0, []
        share = -(-SEEN_ROWS // getattr(self, "batches", SEEN_ROWS))
        for number, batch in enumerate(self._loader(generator)):
            try:
                arguments = self._arguments(batch, seen)
            except (TypeError, ValueError) as error:
                raise type(error)(
                    f"batch {number} of the DataLoader, of the rows from {seen}: {error}"
                ) from error
            seen += len(arguments["x"])
            some.append({k: _first(arguments[k], share) for k in ("x", "y", "sample_weight")})
            yield arguments
        self.some = some
        if not seen:
            raise ValueError(
                "the DataLoader yields no batch. If it did before, its data set can be gone "
                "through only once: let its __iter__ return a new iterator each time"
            )

    def _arguments(self, batch: Any, seen: int) -> Arguments:
        x, y, weight = parts_of(batch)
        kinds = (y is not None, weight is not None)
        if self.kinds is None:
            self.kinds = kinds
        elif self.kinds != kinds:
            raise ValueError(
                f"it has y: {kinds[0]} and weights: {kinds[1]}, but the first batch has y: "
                f"{self.kinds[0]} and weights: {self.kinds[1]}; yield the same in each"
            )
        like = floating_buffer(self.model)
        x = self.model.rows(x, weight=weight, first=seen)
        if y is not None:
            y = check_evidence(y, len(x), self.model.num_components, like)
        if weight is not None:
            weight = check_sample_weight(weight, len(x), like)
        check_inside(self.model, x, None, weight, first=seen)
        size = getattr(self, "size", 0)
        return {"x": x, "y": y, "size": size, "sample_weight": weight}

    def sample(self, count: int) -> TensorSource:
        """Return the first rows."""
        batches: list[Arguments] = []
        for batch in self.epoch(torch.Generator()):
            batches.append(batch)
            if sum(len(b["x"]) for b in batches) >= count:
                break
        return _joined(batches, count).counting()

    def seen(self, count: int) -> TensorSource | None:
        """Return at most so many rows from all over the last whole pass, which is not repeated."""
        return _joined(self.some, count) if self.some else None

    def standardize(self, model: FlowMixture) -> None:
        """Let the model take the units in one pass; columns that are no numbers are named."""
        model.standardizer.fit_batches_(
            model.each_row(batch["x"], batch["sample_weight"])
            for batch in self.epoch(torch.Generator())
        )
        rows = _joined(self.some, SEEN_ROWS)
        x, weight = model.each_row(rows.x, rows.sample_weight)
        warn_of_columns(x if weight is None else x[weight > 0])


def _first(values: Tensor | None, count: int) -> Tensor | None:
    return None if values is None else values[:count].clone()


def _joined(batches: Sequence[Arguments], count: int) -> TensorSource:
    """Return at most so many rows of batches."""

    def joined(name: str) -> Tensor | None:
        parts = [batch[name] for batch in batches]
        return None if parts[0] is None else torch.cat(parts)[:count]

    x = joined("x")
    assert x is not None
    positions = torch.arange(len(x), device=x.device)
    rows = len(batches[0]["x"])
    return TensorSource(x, joined("y"), joined("sample_weight"), rows, positions)


def rows_and_batches(loader: DataLoader[Any]) -> tuple[int, int] | None:
    """Return the rows and batches of one pass as far as the loader knows them."""
    batches: Any = loader.batch_sampler
    if isinstance(loader.dataset, IterableDataset):
        try:
            size = len(loader.dataset)  # type: ignore[arg-type]
        except TypeError:
            return None
        if loader.batch_size is None:
            return None
        return (size, len(loader)) if not loader.drop_last else None
    if batches is None:  # the data set makes the batches
        return None
    if loader.collate_fn is not default_collate:  # it may leave rows out, or join several
        return None
    if type(batches) is not BatchSampler:
        lengths = [len(batch) for batch in batches]
        return sum(lengths), len(lengths)
    try:
        size = len(batches.sampler)  # type: ignore[arg-type]
    except TypeError:
        return None
    return size - (size % batches.batch_size if batches.drop_last else 0), len(batches)
