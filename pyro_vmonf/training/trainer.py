"""The training loop, of one run or of R runs side by side."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from pyro_vmonf._utils.contexts import evaluating, local_seed, training
from pyro_vmonf._utils.progress import progress_bar
from pyro_vmonf.training.data import Arguments
from pyro_vmonf.training.history import History
from pyro_vmonf.training.lanes import Lanes
from pyro_vmonf.training.optimisers import flush_
from pyro_vmonf.training.plan import Plan, Run
from pyro_vmonf.training.reading import Terms
from pyro_vmonf.training.rows import number_of_rows
from pyro_vmonf.training.selection import START

logger = logging.getLogger(__name__)
LONGEST_UNREAD = 256  # steps
FLUSHED = 256  # steps, after which an epoch's end sets denormal numbers to zero


class Trainer:
    """The loop over epochs and batches: steps, record, measured states, stopping.

    Arguments:
        lanes: the state that is trained.
        runs: one for each lane.
        optimizer: of the parameters of the lanes.
        scheduler: of the optimiser, moved once a step; one that waits for a plateau once an epoch.
        plan: the course.
        after_epoch: called with the trainer and the number of the epoch; returning a text stops
            the run, and the history says it.
        after_move: called after each accepted step.
    """

    def __init__(
        self,
        lanes: Lanes,
        runs: Sequence[Run],
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        plan: Plan,
        after_epoch: Sequence[Callable[[Trainer, int], str | None]] = (),
        after_move: Callable[[], object] = lambda: None,
    ) -> None:
        self.lanes = lanes
        self.runs = list(runs)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.plan = plan
        self.after_epoch = after_epoch
        self.after_move = after_move
        self.steps = 0
        self.scheduled_steps = 0
        self.epoch = -plan.pretrain_epochs
        self.in_callback = False
        self.seconds, self.end = 0.0, math.inf  # behind, and of the time that there is
        self.temperature = 1.0
        self.batches: Sequence[Arguments] = ()  # of the last step
        self.in_eval: Sequence[str] = ()  # parts that a callback of the first part put there
        self.anneal(0)  # pretraining stays at the start of the schedules

    def run(self) -> list[History]:
        """Go through the epochs; return the history of each run.

        An error that ends a single run after its first step carries the history: see
        :meth:`History.kept_by`. The module is then in its last accepted state.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "training needs gradients, and torch.inference_mode() has none; call it outside of "
                "that block"
            )
        start = time.perf_counter() - self.seconds
        if self.plan.minutes is not None:
            self.end = start + 60 * self.plan.minutes
        taken = self._taken()
        logger.info("%s begins %s; %d steps in all", self._name, self.place(), self._total())
        try:
            self._go_through_all(start)
        except BaseException as error:
            with suppress(RuntimeError):  # of a device that has failed
                self._read()
            self.seconds = time.perf_counter() - start
            for run in self.runs:
                run.history.interrupt(self._reason(error), self.seconds, run.held_out)
                logger.info("%s ended %s: %s", self._name, self.place(), run.history.stopped)
                if len(self.runs) == 1 and self._taken() > taken:
                    run.history.kept_by(error)
            raise
        self.seconds = time.perf_counter() - start
        for run in self.runs:
            run.history.seconds = self.seconds
            said = run.history.stopped or "all of it ran"
            logger.info("%s ended %s: %s", self._name, self.place(), said)
        return [run.history for run in self.runs]

    def _go_through_all(self, start: float) -> None:
        bar = progress_bar(self._total(), bool(self.plan.title), self.plan.title)
        with torch.enable_grad(), training(self.lanes.module), bar as self.bar:
            for name in self.in_eval:
                self.lanes.module.get_submodule(name).training = False
            self.bar.update(self.scheduled_steps if self.plan.epochs is None else self.steps)
            if self.steps == 0:
                self._measure(START)
            while any(run.going for run in self.runs) and not self.done():
                self._go_through_epoch()
                self.seconds = time.perf_counter() - start
                if self.plan.minutes is not None:  # the steps for which there is time
                    self.bar.total = self.bar.n + max(self.steps_left(), 0)
                self.in_callback = True
                stops = [hook(self, self.epoch) for hook in self.after_epoch]  # all see the epoch
                self.in_callback = False
                for run in self.runs:
                    if run.going and any(stops):
                        run.going, run.history.stopped = False, next(filter(None, stops))
                self.epoch += 1
                if self.runs[0].going and not self.done():
                    self.at_epoch_end()
        self._choose()
        self.at_epoch_end()  # once the state that stays is there

    @property
    def _name(self) -> str:
        return self.plan.title or "fit"

    def _total(self) -> int:
        """Return the number of steps of the whole run, those of labelled rows among them."""
        plan, first = self.plan, self.runs[0]
        if plan.epochs is None:
            return plan.steps or 0
        labelled = 0 if first.labelled is None else first.labelled.batches
        labelled *= plan.pretrain_epochs + plan.epochs * plan.interleave
        return labelled + plan.epochs * first.train.batches

    def place(self) -> str:
        """Say where the run is: after how many epochs, steps and seconds."""
        of = "" if self.plan.epochs is None else f" of {self.plan.epochs}"
        return f"after epoch {self.epoch}{of}, {self.steps} steps, {self.seconds:.1f} s"

    def _taken(self) -> int:
        """Return how many steps of the first run were accepted."""
        return self.steps - self.runs[0].history.rejected

    def _reason(self, error: BaseException) -> str:
        """Return the words for an error that ends the runs."""
        if isinstance(error, KeyboardInterrupt):
            return f"interrupted in epoch {self.epoch}"
        kind = type(error).__name__
        return f"{kind} in a callback" if self.in_callback else f"{kind} in epoch {self.epoch}"

    def at_epoch_end(self) -> None:
        """Do what is due between two epochs: here, nothing."""

    def done(self) -> bool:
        """Return whether every epoch or step is behind."""
        if self.plan.steps is not None:
            return self.scheduled_steps >= self.plan.steps
        return self.epoch >= (self.plan.epochs or 0)

    def steps_left(self) -> int:
        """Return how many steps are to come if nothing stops the run."""
        plan = self.plan
        if plan.steps is not None:
            left = plan.steps - self.scheduled_steps
        else:
            epochs = max(self.epoch + 1 + plan.pretrain_epochs, 1)  # behind
            left = self.steps * ((plan.epochs or 0) - self.epoch - 1) // epochs
        if plan.minutes is None or not self.seconds:
            return left
        return min(left, int(self.steps * (60 * plan.minutes / self.seconds - 1)))

    def anneal(self, step: int) -> None:
        """Move temperature and terms along their schedules."""
        self.followed = step
        self._follow(step)
        if self.plan.temperature is not None:
            self.temperature = float(self.plan.temperature(step))
            self.lanes.set_temperature_(self.temperature)

    def _follow(self, step: int) -> None:
        """Give the terms their weights of a step."""
        getattr(self.lanes.module, "set_step_", lambda step: None)(step)

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """Give the terms the weights of the last step, by which all states are compared."""
        plan, batches = self.plan, self.runs[0].train.batches
        self._follow(max((plan.steps or (plan.epochs or 0) * batches) - 1, 0))
        try:
            yield
        finally:
            self._follow(self.followed)

    def _go_through_epoch(self) -> None:
        plan, before = self.plan, self.steps
        if plan.epochs is not None:
            where = f"epoch {self.epoch + 1}/{plan.epochs}" if self.epoch >= 0 else "labelled rows"
            self.bar.set_description(f"{plan.title}, {where}", refresh=False)
        over = False
        if self.runs[0].labelled is not None and (self.epoch < 0 or plan.interleave):
            own = [(run.labelled, run.generator) for run in self.runs if run.labelled]
            self._go_through([part.epoch(g, self.epoch < 0) for part, g in own], scheduled=False)
            over = time.perf_counter() >= self.end
        if self.epoch >= 0 and not over:
            batches = [run.train.epoch(run.generator) for run in self.runs]
            self._go_through(batches, scheduled=True)
        self._read()
        if self.steps // FLUSHED > before // FLUSHED:  # the same after a resumed run
            flush_(self.optimizer)
        for run in self.runs:
            if not run.history.stopped and not run.failure:
                run.close_epoch(self.epoch, self.steps, self.temperature, plan.objective)
        self._measure(self.epoch)
        history = self.runs[0].history
        if isinstance(self.scheduler, ReduceLROnPlateau) and self.epoch >= 0:
            larger_is_better = self.scheduler.mode == "max"
            objective = history.objective[-1]
            self.scheduler.step(objective if larger_is_better else -objective)
        if history.elbo:
            shown = history.last_numbers()
            self.bar.set_postfix(shown, refresh=False)
            logger.debug("%s, epoch %d: %s", self._name, self.epoch, shown)

    def _go_through(self, batches: list[Iterator[Arguments]], scheduled: bool) -> None:
        for arguments in zip(*batches, strict=True):
            if scheduled and self.plan.steps is not None and self.done():
                return
            if not any(run.going for run in self.runs):
                return
            if scheduled:
                self.anneal(self.scheduled_steps)
            self.step(arguments)
            self.scheduled_steps += scheduled
            self.bar.update(scheduled or self.plan.epochs is not None)
            if time.perf_counter() >= self.end:
                return

    def step(self, batches: Sequence[Arguments]) -> None:
        """Take one step of every run."""
        self.batches = batches
        going = [run.going for run in self.runs]
        terms, taken = self.lanes.step(batches, going, self._move)
        self.steps += 1
        if taken or self.steps % LONGEST_UNREAD == 0:
            self._read()
        if not taken:
            return
        alone = len(self.runs) == 1
        for i, (run, ok) in enumerate(zip(self.runs, taken, strict=True)):
            if not run.going:
                continue
            own = terms if alone else {name: value[i] for name, value in terms.items()}
            if ok:
                run.rejected_in_a_row = 0
                rows, weight = batches[i]["x"], batches[i].get("sample_weight")
                run.taken += int(number_of_rows(rows, weight))
                for name, value in own.items():
                    run.totals[name] = run.totals.get(name, 0.0) + len(rows) * value
            else:
                logger.info("%s: step %d is not finite and is rolled back", self._name, self.steps)
                self._reject(i, own)

    def _read(self) -> None:
        """Take over what the steps of the one run have left on the device."""
        found, run = self.lanes.read(), self.runs[0]
        if found is None:
            return
        run.taken += found.rows
        for name, value in found.totals.items() if found.rows else []:
            run.totals[name] = run.totals.get(name, 0.0) + value
        streak = max(found.longest, run.rejected_in_a_row + found.leading)
        if found.rejected < found.steps:
            run.rejected_in_a_row = 0
            self.after_move()
        if found.rejected:
            where = f"{found.rejected} of {found.steps} steps until step {self.steps}"
            logger.info("%s: %s are not finite and are rolled back", self._name, where)
            self._reject(0, found.terms, found.rejected, found.in_a_row, streak)

    def _move(self, parameters: bool = True) -> None:
        """Move the parameters, unless the graph of the step has done so, and the schedules."""
        if parameters:
            self.optimizer.step()
        if self.scheduler is not None and not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        self.after_move()

    def _reject(
        self, number: int, terms: Terms, count: int = 1, in_a_row: int = 1, streak: int = 0
    ) -> None:
        """Count rejected steps of a run, and give it up after too many in a row.

        Arguments:
            number: of the run.
            terms: of the last step.
            count: of the rejected steps.
            in_a_row: how many of them are the last ones.
            streak: the most in a row, which may be behind.
        """
        run = self.runs[number]
        run.history.rejected += count
        run.rejected_in_a_row += in_a_row
        streak = max(streak, run.rejected_in_a_row)
        if streak < self.plan.max_rejected:
            return
        culprit = self.plan.culprit(terms, self.batches[number])
        self.lanes.step_back_(number)
        run.going = False
        run.history.stopped = f"{streak} steps in a row were not finite"
        run.failure = (
            f"{streak} steps in a row had a loss or gradient that is not "
            f"finite (step {self.steps}: {culprit}); the last good state was kept. "
            "Try a smaller lr, clip_norm, or a smaller bound of the flows"
        )

    @torch.no_grad()
    def _measure(self, epoch: int) -> None:
        """Measure the state of each run, record it, and stop the runs that are out of patience."""
        if self.runs[0].measured is None:
            return
        found = self._terms_of_measured_rows()
        for i, run in enumerate(self.runs):
            if run.history.stopped:
                continue
            terms = {name: float(value[i]) for name, value in found.items()}
            objective = self.plan.objective(terms)
            if epoch != START and run.held_out:
                run.history.held_out.append(sum(terms.values()))
                run.history.objective[-1] = objective
            elif epoch == START:
                run.history.start = objective
            if epoch >= 0 or (epoch == START and self.plan.pretrain_epochs == 0):
                run.keeper.see(epoch, objective, lambda i=i: self.lanes.state(i))  # type: ignore[misc]
            patience = self.plan.patience
            if patience is not None and epoch >= 0 and epoch - run.keeper.trained_epoch >= patience:
                run.going = False
                run.history.stopped = f"no better held-out objective for {patience} epochs"
                if len(self.runs) > 1 and not run.keeper.state:  # the others go on
                    run.keeper.state = self.lanes.state(i)

    def _terms_of_measured_rows(self) -> Terms:
        """Return the terms per row of each run ``(R,)`` on its measured rows."""
        sources = [run.measured for run in self.runs if run.measured is not None]
        totals: Terms = {}
        with evaluating(self.lanes.module), local_seed(0), self._judging():
            for batches in zip(*(s.in_order(self.plan.draws) for s in sources), strict=True):
                share = len(batches[0]["x"]) / sources[0].size / self.plan.draws
                for name, value in self.lanes.measured_terms(batches).items():
                    totals[name] = totals.get(name, 0.0) + value.detach().reshape(-1).cpu() * share
        return totals

    @torch.no_grad()
    def _last_is_finite(self) -> list[bool]:
        """Return whether the last state of each run, and its objective, are finite."""
        finite = [self.lanes.is_finite(i) for i in range(len(self.runs))]
        if self.batches and self.plan.check_last:
            with evaluating(self.lanes.module), local_seed(0):
                terms = self.lanes.terms(self.batches)
            total = torch.stack(list(terms.values())).sum(0).reshape(-1)
            finite = [a and b for a, b in zip(finite, total.isfinite().tolist(), strict=True)]
        return finite

    def _choose(self) -> None:
        """Put every run into the state that stays."""
        last_is_finite = self._last_is_finite()
        for i, run in enumerate(self.runs):
            if run.keeper.keep and run.keeper.state:
                self.lanes.load_(i, run.keeper.state)
                epochs = run.history.epoch
                chosen = run.keeper.epoch
                run.history.kept = epochs.index(chosen) if chosen in epochs else None
            elif run.keeper.state:  # of a run that stopped before the others
                self.lanes.load_(i, run.keeper.state)
            elif not last_is_finite[i]:
                self.lanes.step_back_(i)
                run.history.stepped_back = True
            if run.history.rejected == self.steps > 0:
                run.failure = run.failure or self.rejected(run)

    def rejected(self, run: Run) -> str:
        """Say how many steps of a run were rolled back."""
        what = "steps had a loss or gradient that is not finite"
        return f"{run.history.rejected} of {self.steps} {what}"
