"""A pair as a Lightning module (extra ``lightning``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.files import difference, settings_of
from pyro_vmonf.interop.ddp import TrainingLoss
from pyro_vmonf.schedules import Cooling, Schedule
from pyro_vmonf.training.loaders import parts_of, rows_and_batches
from pyro_vmonf.vmonf import VMoNF


class LightningMixture(LightningModule):
    """A pair for Lightning's ``Trainer``, with batches ``x``, ``(x, y)`` or ``(x, y, weight)``.

    The ``Trainer`` handles devices, processes, precision and checkpoints. Standardise the rows
    first, by ``vmonf.model.standardize_(x)`` or ``vmonf.model.standardizer.fit_batches_(batches)``.

    Arguments:
        vmonf: the pair.
        lr: learning rate of Adam.
        temperature: a number, or a function from the step to the temperature of the guide; by
            default it stays.
        size: rows of the whole data set. Weights in closed form, random weights and random
            parameters need it. By default it is that of the trainer's loader.
        optimizer: function from the parameters to an optimiser, in place of Adam.

    Raises:
        TypeError: if the temperature is laid over the steps of ``fit``, which are not known here.
        ValueError: if ``size`` is not above zero; in training, if the pair needs a size that the
            loader does not know, or the guide has no temperature to set.
    """

    def __init__(
        self,
        vmonf: VMoNF,
        *,
        lr: float = 1e-3,
        temperature: float | Schedule | None = None,
        size: int | None = None,
        optimizer: Callable[[Any], Optimizer] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(temperature, Cooling):
            raise TypeError(
                "temperature is a cooling() over the steps of fit; expected a number, or a "
                "function of the step such as exponential_decay(1e-3)"
            )
        self.vmonf = vmonf
        self.loss = TrainingLoss(vmonf)
        self.lr = lr
        self.temperature = temperature
        self.size = None if size is None else check_positive("size", size)
        self.rows: int | None = None  # of the data set, once it is known
        self.optimizer = optimizer

    def on_train_start(self) -> None:
        """Count the rows of the data set, where ``size`` was not given.

        Raises:
            ValueError: if the loader does not know their number, and the pair has to.
        """
        loader = self.trainer.train_dataloader
        counted = rows_and_batches(loader) if isinstance(loader, DataLoader) else None
        self.rows = self.size
        if self.rows is None and counted is not None:
            self.rows = counted[0] * self.trainer.world_size
        self._check_rows()

    def _loss(self, batch: Any) -> Tensor:
        x, y, weight = parts_of(batch, "batch")
        rest = {} if weight is None else {"sample_weight": weight}
        size = self.rows or self.size or len(x)
        loss: Tensor = self.loss(x, y, size=size, **rest)
        return loss

    def _check_rows(self) -> None:
        """Refuse to go on without the number of rows that the loss needs.

        Raises:
            ValueError: if it is not known.
        """
        if self.rows is None and self.size is None and self.loss.needs_size:
            raise ValueError(
                "weights in closed form, random weights and random parameters need the number of "
                "rows that the pair is trained on, which is not known here; pass size= to "
                "LightningMixture"
            )

    def training_step(self, batch: Any, number: int) -> Tensor:
        """Return the loss per row of a batch."""
        guide = self.vmonf.guide
        guide.set_step_(self.global_step)
        if self.temperature is not None:
            now = self.temperature
            guide.set_temperature_(now(self.global_step) if callable(now) else now)
        loss = self._loss(batch)
        self.log("elbo", -loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, number: int) -> None:
        """Log the held-out objective per row: the ELBO, less the terms of the guide."""
        if not self.trainer.sanity_checking:  # which comes before the rows are counted
            self._check_rows()
        self.log("held_out", -self._loss(batch), sync_dist=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the settings of the parts and the names of the columns beside their state."""
        checkpoint["parts"] = settings_of(self.vmonf)
        checkpoint["feature_names"] = self.vmonf.model.feature_names

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of a pair with other settings.

        Raises:
            ValueError: if it is one.
        """
        own, theirs = settings_of(self.vmonf), checkpoint.get("parts")
        # Checkpoints of earlier versions have some of them as settings.
        known = checkpoint.get("settings", {}) if theirs is None else theirs
        if differs := difference(own, known, whole=theirs is not None):
            raise ValueError(f"the checkpoint is of another pair: {differs}")
        model = self.vmonf.model
        model.feature_names = checkpoint.get("feature_names", model.feature_names)

    def configure_optimizers(self) -> Optimizer:
        """Return Adam or the given optimiser."""
        if self.optimizer is not None:
            return self.optimizer(self.vmonf.parameters())
        return torch.optim.Adam(self.vmonf.parameters(), lr=self.lr)
