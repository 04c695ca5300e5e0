"""Pyro modules that can be nested, swapped and used again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vmonf.program.store import recording, register, rename


class Program(PyroModule):
    """A Pyro module that may join a larger one, also after it has run on its own.

    Pyro refuses that, lest names change under a param store in use. Here the names of sites follow
    the place of the module, and the names of parameters in the store do not: :func:`register`
    gives them. A part that is read inside a program is declared there.
    """

    in_program = False  # whether it has sites of its own, or updates by the guide
    declares_itself = True

    def __getattr__(self, name: str) -> Any:
        part = self.__dict__.get("_modules", {}).get(name)
        if part is None:
            part = self.__dict__.get("_parameters", {}).get(name)
            if part is not None and not name.endswith("_unconstrained"):
                if recording() and part.requires_grad:
                    register(self)
                return part
        elif not isinstance(part, PyroModule):
            if recording():
                register(part, self)
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


class Conditioned(Transparent):
    """A part of a program of which some sites are observed, whose values are its buffers."""

    names: list[str]

    def keep_(self, names: Sequence[str], values: Sequence[Tensor]) -> None:
        """Keep copies of observed values by the names of what they are of."""
        self.names = list(names)
        for number, value in enumerate(values):
            self.register_buffer(f"value_{number}", value.detach().clone())

    @property
    def values(self) -> list[Tensor]:
        """The observed values."""
        return [self.get_buffer(f"value_{number}") for number in range(len(self.names))]

    def by_name(self) -> dict[str, Tensor]:
        """Return the observed values by their names."""
        return dict(zip(self.names, self.values, strict=True))


def name_of(module: PyroModule, default: str) -> str:
    """Return the name of a Pyro module; alone it has the default."""
    return module._pyro_name or default


def detached_(module: nn.Module) -> None:
    """Take a Pyro module out of the program that runs now."""
    rename(module, "", PyroModule()._pyro_context)
