"""Draws of the random parts of a mixture, and the mixture under each draw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.validation import as_tensor, check_positive, check_simplex, floating_buffer
from pyro_vmonf.distributions.chain import HiddenChain
from pyro_vmonf.distributions.marginal import Marginal
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import unregistered
from pyro_vmonf.vmonf import MarkovVMoNF, VMoNF
from pyro_vmonf.weights.observed import sites_of


@dataclass(frozen=True)
class Draws:
    """Values of the random sites of a mixture; without sites, the point estimate.

    Attributes:
        sites: values ``(chains, draws, *site_shape)`` by the names of the sites.
        chains: number of chains.
        draws: number of draws in each chain.
    """

    sites: dict[str, Tensor]
    chains: int = 1
    draws: int = 1

    def changes_components(self, model: FlowMixture) -> bool:
        """Return ``True`` if sites other than the weights are drawn."""
        with unregistered():
            return bool(self.sites.keys() - sites_of(model.weights).keys())

    def mixtures(self, model: FlowMixture) -> Iterator[Marginal | HiddenChain]:
        """Return the mixture under each draw, chain after chain."""
        if not self.sites:
            yield model.mixture()
            return
        # Components that no draw changes are built once.
        components = None if self.changes_components(model) else model.components()
        for values in self._each():
            with unregistered(), poutine.condition(data=values):
                if components is None:
                    mixture = model.summed_out(*model.draw_parts())
                else:
                    mixture = model.summed_out(model.weights(), components)
            yield mixture

    @torch.no_grad()
    def weights(self, model: FlowMixture) -> Tensor:
        """Return the weights under each draw ``(chains, draws, K)``; rows of a chain likewise."""
        found = []
        for values in self._each():
            with unregistered(), poutine.block(), poutine.condition(data=values):
                found.append(model.weights().exp())
        return self.by_chain(found)

    def _each(self) -> Iterator[dict[str, Tensor]]:
        """Return the values of the sites in each draw, chain after chain."""
        for chain in range(self.chains):
            for draw in range(self.draws):
                yield {name: value[chain, draw] for name, value in self.sites.items()}

    def by_chain(self, values: list[Tensor]) -> Tensor:
        """Stack one value for each draw as ``(chains, draws, *)``."""
        return torch.stack(values).unflatten(0, (self.chains, self.draws))


def draws_of_guide(vmonf: VMoNF | MarkovVMoNF, draws: int, seed: int | None) -> Draws:
    """Draw the random parts of the mixture from the guide.

    Raises:
        ValueError: if the mixture has no random parts, or the number is below one.
    """
    check_positive("draws", draws)
    names = _shapes(vmonf.model, f"draws is {draws}")  # a guide may draw auxiliary sites as well
    found: list[dict[str, Tensor]] = []
    with local_seed(seed), evaluating(vmonf), torch.no_grad(), unregistered():
        for _ in range(draws):
            # Without rows the guide draws the global sites only.
            found.append(_values(poutine.trace(vmonf.guide).get_trace()))
    sites = {name: torch.stack([one[name] for one in found])[None] for name in names}
    return Draws(sites, 1, draws)


def draws_of_samples(vmonf: VMoNF | MarkovVMoNF, samples: Mapping[str, Any]) -> Draws:
    """Take samples of the random parts of the mixture from an MCMC.

    Arguments:
        vmonf: the pair.
        samples: values ``(draws, *site_shape)`` or ``(chains, draws, *site_shape)`` by the names of
            the sites, as ``mcmc.get_samples(group_by_chain=True)`` returns them.

    Raises:
        ValueError: if names or shapes differ from those of the random sites.
    """
    like = floating_buffer(vmonf)
    shapes = _shapes(vmonf.model, f"posterior holds {', '.join(samples) or 'nothing'}")
    supports = {name: site["fn"].support for name, site in _random_sites(vmonf.model).items()}
    if samples.keys() != shapes.keys():
        raise ValueError(
            f"posterior holds {', '.join(samples) or 'nothing'}; expected the mixture's random "
            f"sites: {', '.join(shapes)}"
        )
    sites = {name: as_tensor(name, value).to(like) for name, value in samples.items()}
    for name, shape in shapes.items():
        value = sites[name]
        value = value.unsqueeze(0) if value.dim() == len(shape) + 1 else value
        if value.dim() != len(shape) + 2 or value.shape[2:] != shape or 0 in value.shape:
            raise ValueError(
                f"posterior[{name!r}] has shape {tuple(sites[name].shape)}; expected (draws, "
                f"{', '.join(map(str, shape))}), with the chains in front if there are several"
            )
        if value.shape[0] > value.shape[1]:
            raise ValueError(
                f"posterior[{name!r}] has shape {tuple(sites[name].shape)}: more chains than draws;"
                " Predictive returns a dimension for the rows, which .squeeze(1) removes"
            )
        _check_support(name, value, supports[name])
        sites[name] = value
    counts = {tuple(value.shape[:2]) for value in sites.values()}
    if len(counts) > 1:
        raise ValueError(f"the sites have {sorted(counts)} chains and draws; expected as many each")
    return Draws(sites, *counts.pop())


def _check_support(name: str, value: Tensor, support: Any) -> None:
    """Refuse draws of a site that its prior cannot have drawn.

    Raises:
        ValueError: if there are some.
    """
    if support is constraints.simplex:
        check_simplex(f"posterior[{name!r}]", value)
    elif not bool(support.check(value).all()):
        raise ValueError(
            f"posterior[{name!r}] has draws outside the support of its prior, {support}; pass "
            "draws in the units of the site, and not in unconstrained ones"
        )


def _values(trace: poutine.Trace) -> dict[str, Tensor]:
    """Return the values of the sample sites of a trace."""
    nodes: dict[str, Any] = trace.nodes
    return {name: site["value"] for name, site in nodes.items() if site["type"] == "sample"}


def is_random(model: FlowMixture) -> bool:
    """Return ``True`` if the mixture has random parts."""
    return bool(_random_sites(model))


@torch.no_grad()
def _random_sites(model: FlowMixture) -> dict[str, Any]:
    """Return the random sites, as Pyro's trace has them."""
    with local_seed(0):
        nodes: dict[str, Any] = poutine.trace(model.draw_parts).get_trace().nodes
    return {
        name: site
        for name, site in nodes.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def _shapes(model: FlowMixture, given: str) -> dict[str, torch.Size]:
    """Return the shapes of the random sites; raise ``ValueError`` if there are none."""
    shapes = {name: site["value"].shape for name, site in _random_sites(model).items()}
    if not shapes:
        raise ValueError(
            f"{given}, but nothing in the mixture is random: its {type(model.weights).__name__} "
            "are a point estimate; leave it out, or give the weights a prior (a Dirichlet)"
        )
    return shapes
