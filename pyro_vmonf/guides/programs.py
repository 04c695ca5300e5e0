"""Guides that are Pyro programs of any kind, alone or several one after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import evaluating, local_seed, own_store
from pyro_vmonf.guides.base import BoundGuide
from pyro_vmonf.guides.drawn import (
    check_takes_draws,
    hidden_with,
    refuse_networks,
    require_log_q,
    require_take,
    rows_of,
    same_values,
    sites_of_members,
    take_draws_,
)
from pyro_vmonf.guides.exact import MarginalGuide
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import (
    FunctionProgram,
    accepted,
    check_member,
    declares,
    drawn_sites,
    give_models_,
    models_of,
    name_foreign_,
    reset_autoguide_,
)

Member = Callable[..., Any]


class PyroGuide(BoundGuide):
    """Any Pyro guide of the mixture, or several of them that draw different sites.

    :class:`~pyro_vmonf.VMoNF` and :func:`~pyro_vmonf.fit` make it of what they are given. Members
    run one after the other, each with those of the model's arguments that it takes. Random parts of
    the mixture that no member draws keep their own posterior. ``c`` is drawn by one member, or
    summed out in the model.

    Parts that build themselves at their first run (autoguides, ``pyro.param`` in a function) do so
    on the first rows: of ``fit``, or drawn from the model. ``predict`` uses the ``log_q`` of a
    member, and Bayes' rule where none has it: see :attr:`predicts_by`. Members are given rows in
    raw units, which ``model.standardizer.inv(x)`` takes off.

    Arguments:
        members: guides: modules, autoguides, functions, guides of this library.
        model: the mixture; :class:`~pyro_vmonf.VMoNF` passes it where it is missing.

    Raises:
        TypeError: if a member is no callable.
        ValueError: if two members draw the same site, or an autoguide draws ``c``.

    Example:
        >>> import pyro
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from pyro_vmonf import FlowMixture, Gaussian, VMoNF
        >>> model = FlowMixture(Gaussian(2, 3), pyro.distributions.Dirichlet(torch.ones(3)))
        >>> guide = AutoNormal(pyro.poutine.block(model, hide=["c"]))
        >>> history = VMoNF(model, guide).fit(torch.randn(20, 2), epochs=1, progress=False)
        >>> sorted(history.terms)
        ['entropy', 'log_likelihood', 'log_prior', 'weights', 'weights_unconstrained']
    """

    prototype: Tensor

    def __init__(self, members: Sequence[Member], *, model: FlowMixture | None = None) -> None:
        object.__setattr__(self, "_ready", False)
        super().__init__(model)
        for member in members:
            check_member(member)
        parts = [m if isinstance(m, nn.Module) else FunctionProgram(m) for m in members]
        count = sum(isinstance(part, BoundGuide) for part in parts)
        if count > 1:
            raise ValueError(f"{count} members are guides of c; expected one beside other guides")
        self.rest = None if count else MarginalGuide()  # the posteriors of the random parts
        self.programs = nn.ModuleList(parts)
        self.bind_(model)
        # Rows, size, kind of evidence and context of the call that built the members.
        self.register_buffer("prototype", torch.zeros(4, dtype=torch.long))
        self._drawn: list[tuple[set[str], set[str]]] = []  # by each foreign member: all, of rows
        self._of_weights: set[str] = set()  # sites of the weights
        self._settled: list[Tensor] | None = None  # the state of the members that the verbs know
        self._observed: set[str] = set()
        self._first: dict[str, Any] = {}
        self._models = models_of(self.programs)
        name_foreign_(self)

    @property
    def members(self) -> list[Member]:
        """The members, as they were given."""
        parts = self.__dict__["_modules"]["programs"]
        return [p.function if isinstance(p, FunctionProgram) else p for p in parts]

    @property
    def _own(self) -> BoundGuide:
        """The member that is a guide of this library, or what stands for it."""
        modules = self.__dict__["_modules"]
        rest: BoundGuide | None = modules.get("rest")
        bound = [part for part in modules["programs"] if isinstance(part, BoundGuide)]
        return bound[0] if rest is None else rest

    @property
    def _foreign(self) -> list[nn.Module]:
        parts = self.__dict__["_modules"]["programs"]
        return [part for part in parts if not isinstance(part, BoundGuide)]

    @property
    def _all(self) -> set[str]:
        """The sites that foreign members draw."""
        return set().union(*(found for found, _ in self._drawn))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, predicts by {self.predicts_by}"

    def bind_(self, model: FlowMixture | None) -> None:
        self.__dict__["_settled"] = None
        super().bind_(model)
        if "programs" in self.__dict__.get("_modules", {}):
            self._own.bind_(model)

    @property
    def ready(self) -> bool:
        """``True`` once every member has run."""
        return bool(self.__dict__["_ready"])

    def prepare_(self, arguments: dict[str, Any]) -> None:
        if self.ready:
            return
        model = self._bound_model()
        give_models_(self.programs, self._models)
        arguments = {name: value for name, value in arguments.items() if value is not None}
        with evaluating(self), evaluating(model), local_seed(0), torch.no_grad():
            found, drawn = sites_of_members(self._foreign, arguments, model)
        if self._own.draws_component and model.site("c") in drawn:
            raise ValueError(
                f"both {type(self._own).__name__} and {drawn[model.site('c')]} draw "
                f"{model.site('c')!r}; leave one of them out"
            )
        self._drawn = found
        with own_store(), evaluating(model), local_seed(0), torch.no_grad():
            self._of_weights = set(drawn_sites(model.weights, {"context": arguments.get("given")}))
            if self._draws_weights():
                self._drawn = []  # as before, where the weights refuse it
                check_takes_draws(model, arguments.get("given"))
        self._drawn = found
        self._first = arguments
        kind = 0 if "y" not in arguments else 1 + arguments["y"].is_floating_point()
        rows = len(arguments["x"])
        numbers = [rows, arguments.get("size") or rows, int(kind), int("given" in arguments)]
        self.prototype.copy_(torch.tensor(numbers))
        object.__setattr__(self, "_ready", True)
        self.__dict__["_observed"] = self._hidden_with(self._observed)

    def _hidden_with(self, observed: set[str]) -> set[str]:
        """Return the sites that members leave out where some are observed."""
        if not (observed and self.ready):
            return observed
        return hidden_with(self._foreign, self.drawn_rows(), observed)

    def build_(self, model: FlowMixture, batch: dict[str, Any] | None) -> None:
        before = self.model
        self.bind_(model)
        try:
            self.prepare_(self.drawn_rows() if batch is None else batch)
        except BaseException:
            self.bind_(before)
            raise

    def drawn_rows(self) -> dict[str, Any]:
        """Return arguments of a call whose rows the model draws, like those of the first run."""
        return rows_of(self._bound_model(), self.prototype)

    def reset_parameters(self) -> None:
        """Begin anew in what builds itself; other parts have their own ``reset_parameters``."""
        if not self.ready:
            return
        give_models_(self.programs, self._models)
        arguments = self._first or self.drawn_rows()
        for part in self._foreign:
            taken = accepted(part, arguments)
            if isinstance(part, FunctionProgram):
                part.reset_(taken)
            elif isinstance(part, AutoGuide):
                reset_autoguide_(part, taken)

    def resets(self, part: nn.Module) -> bool:
        """Return whether :meth:`reset_parameters` draws the parameters of a part anew."""
        return any(
            part is inner
            for member in self._foreign
            if isinstance(member, FunctionProgram | AutoGuide)
            for inner in member.modules()
        )

    def publish_(self) -> None:
        """Leave the parameters of functions in Pyro's store, where the functions look for them."""
        for part in self._foreign:
            if isinstance(part, FunctionProgram):
                part.publish_()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}prototype")
        if saved is not None and saved[0] > 0 and not self.ready:
            self.prototype.copy_(saved)
            self.prepare_(self.drawn_rows())
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __deepcopy__(self, memo: dict[int, Any]) -> PyroGuide:
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self._without_models(), memo))
        twin.__dict__["_models"] = self._models  # Pyro takes it from the copy and from the original
        for guide in (self, twin):
            give_models_(guide.programs, self._models)
        return twin

    def __getstate__(self) -> dict[str, Any]:
        return {**self._without_models(), "_models": [], "_first": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A pickle of an earlier version does not know the sites of the weights: it is built again.
        old = {} if "_of_weights" in state else {"_ready": False}
        self.__dict__.update({"_of_weights": set(), "_settled": None, **state, **old})

    def _without_models(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_models"}

    # The program

    @declares
    def forward(
        self,
        x: Tensor | None = None,
        y: Tensor | None = None,
        *,
        index: Tensor | None = None,
        size: int | None = None,
        sample_weight: Tensor | None = None,
        given: Tensor | None = None,
        steps: int | None = None,
    ) -> None:
        """Run the members one after the other; without rows, for the sites that are no rows'."""
        arguments = {
            "x": x, "y": y, "index": index, "size": size,
            "sample_weight": sample_weight, "given": given,
        }  # fmt: skip
        rows = arguments if x is not None else self.drawn_rows()
        if not self.ready:
            self.prepare_(rows)
        rows = {name: value for name, value in rows.items() if value is not None}
        each = zip(self._foreign, self._drawn, strict=True)
        parts = [(part, drawn) for part, drawn in each if drawn[0] - self._observed]
        with poutine.block(hide=sorted(self._observed)):
            for part, (_, local) in parts:  # Pyro wants what is global first
                if not local:
                    part(**accepted(part, rows))
        with poutine.block(hide=sorted(self._all)):
            if self.rest is not None and self.draws_component:
                self.rest._begin()  # c is another member's: no counts of the exact posterior
            else:
                self._own(**arguments)
        for part, (_, local) in parts:
            if local:
                hidden = self._observed | (set() if x is not None else local)
                with poutine.block(hide=sorted(hidden)):
                    part(**accepted(part, rows))

    @property
    def exact(self) -> bool:
        return self._q() is None

    @property
    def predicts_by(self) -> str:
        """The posterior that ``predict`` and ``predict_proba`` use, in words."""
        found = self._q()
        return "Bayes' rule" if found is None else f"the log_q of {type(found).__name__}"

    def _q(self) -> Any:
        """Return the member with a ``log_q`` of its own, if there is one."""
        own = self._own
        if own.draws_component and not own.exact:
            return own
        return next((m for m in self.members if hasattr(m, "log_q")), None)

    def learner(self) -> nn.Module | None:
        found = self._q()
        return found if isinstance(found, nn.Module) else None

    @property
    def draws_component(self) -> bool:  # type: ignore[override]
        """``True`` if a member draws ``c``; assumed of members that have not run."""
        if self._own.draws_component or not self.ready:
            return True
        return self._bound_model().site("c") in self._all

    @property
    def temperature(self) -> Tensor | None:  # type: ignore[override]
        modules = self.__dict__.get("_modules", {})
        if "programs" not in modules:
            raise AttributeError("temperature")
        return self._own.temperature

    def log_q(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        found = self._q()
        if found is None:
            return self._bound_model().log_posterior(x, None, given)
        log_q: Tensor = found.log_q(x) if given is None else found.log_q(x, given)
        return log_q

    def bound(self, joint: Tensor, x: Tensor, given: Tensor | None = None) -> Tensor:
        if not self.draws_component or (self.exact and self._own.draws_component):
            return joint.logsumexp(-1)
        if self.exact:
            c = self._bound_model().site("c")
            parts = zip(self._foreign, self._drawn, strict=self.ready)
            drawing = [part for part, (sites, _) in parts if c in sites]
            require_log_q((drawing or self._foreign)[0])
        return super().bound(joint, x, given)

    def sums_directly(self) -> bool:
        return False

    def without(self, sites: Iterable[str], model: FlowMixture) -> BoundGuide:
        twin = super().without(sites, model)
        own = self._own.without(sites, model)
        programs = [own if part is self._own else part for part in self.programs]
        twin.__dict__["_observed"] = self._hidden_with(self._observed | set(sites))
        twin.__dict__["_modules"].update(rest=own if self.rest else None)
        twin.__dict__["_modules"]["programs"] = nn.ModuleList(programs)
        return twin

    def infer(self, rows: Any) -> None:
        raise NotImplementedError("a PyroGuide runs its members whole")

    # What the member of this library says

    def set_step_(self, step: int) -> None:
        self._own.set_step_(step)

    def set_temperature_(self, value: float) -> None:
        self._own.set_temperature_(value)

    def objective(self, terms: dict[str, float]) -> float:
        return self._own.objective(terms)

    def first_clusters(self, x: Tensor) -> Tensor | None:
        return self._own.first_clusters(x)

    def check(self, model: FlowMixture) -> None:
        self._own.check(model)
        refuse_networks(self._foreign, model)

    def compile(self, *_: object, **__: object) -> None:
        self._own.compile()

    def take_(self, index: Tensor) -> None:
        require_take(self._foreign)
        for part in (self._own, *self._foreign):
            part.take_(index)  # type: ignore[operator]

    @torch.no_grad()
    def settle_(self) -> None:
        """Give the random parts that members draw the moments of their draws, for the verbs."""
        model = self._bound_model()
        bank = {n for n in self._all - self._observed if n.startswith(model.site("bank."))}
        state = [v.detach() for v in (*self.programs.parameters(), *self.programs.buffers())]
        if not (bank or self._draws_weights()) or same_values(state, self._settled):
            return
        rows = self.drawn_rows()
        parts = [
            (part, accepted(part, rows))
            for part, (sites, _) in zip(self._foreign, self._drawn, strict=True)
            if sites & (bank | self._of_weights)
        ]
        with own_store(), evaluating(self), evaluating(model), local_seed(0), poutine.block():
            rows = rows if self._draws_weights() else {}
            take_draws_(model, parts, bank, rows, self._of_weights - self._all)
        self._settled = [value.clone() for value in state]

    def _draws_weights(self) -> bool:
        """Return whether members draw the weights, and not only what their prior depends on."""
        drawn = self._of_weights & (self._all - self._observed)
        weights = self._bound_model().site("weights")
        return bool(drawn) and (weights in drawn or weights not in self._of_weights)
