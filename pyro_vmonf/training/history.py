"""The record of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pyro_vmonf._utils.html import sparkline, table

OVER = "minutes were over"  # the ends of runs that another call may go on with
STOPPED = "a callback returned True"


@dataclass
class History:
    """The course of one call of ``fit``, one entry per epoch; ELBO and terms in nats per row.

    Attributes:
        epoch: number of the epoch, from 0; pretraining counts below zero.
        step: training steps done at the epoch's end.
        elbo: mean over the epoch's steps, terms of the guide included; with row weights, the
            weighted sum over the number of rows whose weight is above zero.
        terms: what the ELBO is the sum of: ``log_likelihood``, ``log_prior``, ``entropy``, and the
            factors by name (negative, as penalties).
        temperature: *T* at the epoch's end.
        held_out: ELBO of the held-out rows in ``eval()``, with the weights that the terms have in
            the last step; empty without any.
        objective: what the guide is trained on, larger is better: the share ``elbo_gradient`` of
            the ELBO, less its terms; of the held-out rows if there are any. Restarts are compared
            by it, since the likelihood alone prefers wrong splits.
        kept: position of the epoch whose parameters stayed, the last one as a rule; ``None`` for
            the state before training.
        start: the objective of the state before training, where states are measured.
        stepped_back: whether the last step led to a state without a finite objective and was
            taken back.
        road: the objective that ran: ``"short"``, or ``"TraceEnum_ELBO"`` and the reason.
        restarts: the objective that each restart ended with, empty without any.
        rejected: steps whose loss or gradient was not finite and that were rolled back.
        seconds: wall-clock time of the run.
        choice: what ``VMoNF.from_data`` chose: the start, every candidate's score, the number of
            components, and held-out log-densities in nats.
        stopped: why the run ended before its last epoch, or empty: also an interrupt or an error.
    """

    epoch: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)
    elbo: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    temperature: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    kept: int | None = -1
    start: float | None = None
    road: str = ""
    stepped_back: bool = False
    restarts: list[float] = field(default_factory=list)
    rejected: int = 0
    seconds: float = 0.0
    stopped: str = ""
    choice: dict[str, Any] = field(default_factory=dict)

    @property
    def final_objective(self) -> float:
        """The objective of the parameters that stayed; minus infinity if nothing was recorded."""
        if self.kept is None:
            return -math.inf if self.start is None else self.start
        return self.objective[self.kept] if self.objective else -math.inf

    def record(
        self,
        epoch: int,
        step: int,
        means: dict[str, float],
        temperature: float,
        objective: float,
    ) -> None:
        """Close an epoch, of whose steps the terms' means are given; none if all were rejected."""
        for name in dict.fromkeys((*self.terms, *means)):  # in a fixed order
            past = self.terms.setdefault(name, [0.0] * len(self.epoch))
            past.append(means.get(name, 0.0))
        self.epoch.append(epoch)
        self.step.append(step)
        self.elbo.append(sum(means.values()) if means else math.nan)
        self.objective.append(objective if means else math.nan)
        self.temperature.append(temperature)

    def last_numbers(self) -> dict[str, str]:
        """Return what a progress bar shows of the last epoch."""
        own = {"ELBO": self.elbo} if self.held_out else {"objective": self.objective}
        series = own | {"held out": self.held_out}  # whose objective it is, where there are some
        shown = {name: f"{values[-1]:.3f}" for name, values in series.items() if values}
        return shown | {"T": f"{self.temperature[-1]:.3f}"}

    def interrupt(self, reason: str, seconds: float, held_out: bool) -> None:
        """Close the record of a run that an error ends; an epoch recorded in part is left out.

        Arguments:
            reason: the reason, for :attr:`stopped`.
            seconds: wall-clock time of the run.
            held_out: whether each epoch has a held-out ELBO.
        """
        columns: list[list[Any]] = [self.epoch, self.step, self.elbo, self.objective]
        columns += [self.temperature, *self.terms.values(), *([self.held_out] if held_out else [])]
        whole = min(len(column) for column in columns)
        for column in columns:
            del column[whole:]
        self.stopped, self.seconds = reason, seconds

    def reached(self) -> str:
        """Say where an interrupt or an error ended the run."""
        last = f", the last after step {self.step[-1]}" if self.step else ""
        return (
            f"the fit ended early: {self.stopped}; {len(self.epoch)} epochs are whole{last}. The "
            "pair is in its last accepted state and usable; vmonf.history has the record, and "
            "another fit goes on from here"
        )

    def kept_by(self, error: BaseException) -> None:
        """Let an error carry the history as its attribute ``history``."""
        error.__dict__["history"] = self

    def interrupted_by(self, error: BaseException, where: str) -> None:
        """Let an error carry the history of a run that ended before it."""
        kind = "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        self.stopped = "; ".join(filter(None, (self.stopped, f"{kind} in {where}")))
        self.kept_by(error)

    def __repr__(self) -> str:
        last = f", elbo={self.elbo[-1]:.4f}" if self.elbo else ""
        return f"History({len(self.epoch)} epochs, {self.seconds:.1f} s{last})"

    def _repr_html_(self) -> str:
        """Return the loss of the run as a line, and its last numbers as a table."""
        rows = [
            ("epochs", str(len(self.epoch))),
            ("steps", str(self.step[-1] if self.step else 0)),
            ("seconds", f"{self.seconds:.1f}"),
        ]
        if self.elbo:
            rows.append(("ELBO, nats per row", f"{self.elbo[-1]:.4f}"))
        if self.held_out:
            rows.append(("held out", f"{self.held_out[-1]:.4f}"))
        if self.temperature:
            rows.append(("temperature", f"{self.temperature[-1]:.3g}"))
        if self.rejected:
            rows.append(("steps rolled back", str(self.rejected)))
        if self.stopped:
            rows.append(("stopped", self.stopped))
        drawn = ""
        if self.elbo:
            drawn = f"<div>loss per row<br>{sparkline([-value for value in self.elbo])}</div>"
        return f"<div><strong>History</strong>{table(rows)}{drawn}</div>"
