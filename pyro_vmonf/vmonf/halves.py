"""The two halves of a pair: what each pair does with model and guide."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, Self

from torch import Tensor

from pyro_vmonf import files
from pyro_vmonf._utils.validation import check_positive
from pyro_vmonf.guides import BoundGuide, as_guide
from pyro_vmonf.guides.base import check_pair
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import Transparent
from pyro_vmonf.training.endings import endings_of_data, warn
from pyro_vmonf.training.fit import fit
from pyro_vmonf.training.history import History
from pyro_vmonf.training.restarts import fit_best


class Halves(Transparent):
    """A model and its guide, under one name.

    Arguments:
        model: the mixture.
        guide: its guide; ``None`` sums c out in the model.

    Raises:
        TypeError: if the model belongs into a pair of another kind.
    """

    model: FlowMixture
    guide: BoundGuide
    halves = ("model", "guide")
    of_sequences = False

    def __init__(self, model: FlowMixture, guide: Any = None) -> None:
        super().__init__()
        self.model = model
        self.guide = guide
        self.history: History | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("model", "guide"):
            super().__setattr__(name, value)
            return
        value = as_guide(value) if name == "guide" else value
        if name == "guide" and value.model not in (None, self.__dict__["_modules"].get("model")):
            raise ValueError(
                "the guide belongs to another pair, whose model it is bound to; pass a new guide, "
                "or a copy: twin = copy.deepcopy(guide), twin.bind_(None)"
            )
        former = self.__dict__.get("_modules", {}).get(name)
        halves = {**self.__dict__.get("_modules", {}), name: value}
        if len(halves) == 2:
            check_pair(**halves)
            self._check_kind(halves["model"])
            halves["guide"].check(halves["model"])
        if name == "model" and former is not None:
            _take_units_(value, former)
        super().__setattr__(name, value)
        if len(halves) == 2:
            self.guide.bind_(self.model)
            self.name_children_()

    def _check_kind(self, model: FlowMixture) -> None:
        if model.of_sequences is self.of_sequences:
            return
        kinds = ("rows; put it into a VMoNF", "sequences; put it into a MarkovVMoNF")
        raise TypeError(f"model is a {type(model).__name__} of {kinds[model.of_sequences]}")

    def train(self, mode: bool = True) -> Self:
        """Set the mode of training; in ``eval()`` random parts take over what a guide has learnt.

        Arguments:
            mode: ``False`` for ``eval()``, in which every verb runs.
        """
        super().train(mode)
        if not mode:
            self.guide.settle_()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the model."""
        return self.model(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.model.extra_repr()}, fitted={self.history is not None}"

    def _fit(self, x: Any, y: Any, n_init: int, options: dict[str, Any]) -> History:
        """Fit, and keep the history, also of a fit that an error or an interrupt ends."""
        several = check_positive("n_init", n_init) > 1
        run: Callable[..., History] = partial(fit_best, n_init=n_init) if several else fit
        try:
            self.history = run(self.model, self.guide, x, y, **options)
        except BaseException as error:
            reached = vars(error).get("history")
            if reached is not None:
                self.history = reached
                error.add_note(reached.reached())
            raise
        if several:
            warn(*endings_of_data(self.model, self.guide, self.history, x, y, options))
        return self.history

    def compile(self, *_: Any, **__: Any) -> None:
        """Let ``torch.compile`` take the components' density and the guide's network from now on.

        Values stay what they are, to rounding. The first step of each shape takes tens of seconds.
        """
        self.model.bank.compile()
        self.guide.compile()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write configuration and state to a file that loads with ``weights_only=True``."""
        files.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, into: Self | None = None) -> Self:
        """Read what :meth:`save` wrote.

        Arguments:
            path: the file.
            into: a freshly built pair to fill, for models with modules of the user's own.
        """
        return files.load(path, cls, History, into=into)  # type: ignore[no-any-return]


def _take_units_(model: FlowMixture, former: FlowMixture) -> None:
    """Give a model without units those of the former one, in which the guide has learnt."""
    if model.standardizer.fitted or not former.standardizer.fitted:
        return
    if model.bounded:
        warn(
            "the new components live on a bounded set, whose rows keep their units, and the former "
            "model standardised them: fit the pair again before you ask its guide"
        )
    elif model.event_shape == former.event_shape:
        model.standardizer.load_state_dict(former.standardizer.state_dict())
        model.feature_names = model.feature_names or former.feature_names
