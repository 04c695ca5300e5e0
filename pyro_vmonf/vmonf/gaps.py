"""The verbs of a pair on rows with missing entries: densities of the others, and completed rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from pyro_vmonf._utils.contexts import evaluating, local_seed
from pyro_vmonf._utils.validation import check_context_rows, check_positive, floating_buffer
from pyro_vmonf.distributions.partial import Partial, observe, rows_at_once
from pyro_vmonf.model import FlowMixture
from pyro_vmonf.program import check_follows, posterior_of_joint
from pyro_vmonf.training.endings import warn

DRAWS = 256  # of a missing entry, where importance weights are needed
FEW = 13  # effective draws, below which an estimate is named


class PartialLogProb(NamedTuple):
    """The log-density of the entries of each row that are there.

    Arguments:
        log_prob: in nats, raw units, ``(N,)``; zero for a row without any.
        error: its standard error ``(N,)``; zero where it is exact.
        effective: the share of the draws that count, between 0 and 1, ``(N,)``; one where it is
            exact.
    """

    log_prob: Tensor
    error: Tensor
    effective: Tensor


class Completed(NamedTuple):
    """Rows whose missing entries are filled in.

    Arguments:
        x: rows ``(N, D)``, or draws of them ``(draws, N, D)``. Their columns have the order of the
            fit.
        effective: the share of the importance-weighted draws behind each row that count, ``(N,)``;
            one where the conditional is exact.
    """

    x: Tensor
    effective: Tensor


class Completes(nn.Module):
    """Partial densities and completed rows of a pair."""

    model: FlowMixture
    log_prob: Any

    @torch.no_grad()
    def partial_log_prob(
        self,
        x: Any,
        *,
        given: Any = None,
        draws: int = DRAWS,
        seed: int | None = 0,
        chunk_size: int = 8192,
    ) -> PartialLogProb:
        r"""Return the log-density of the entries that are there, with its standard error.

        .. math::
            \log p(x_\text{obs}) = \log\sum_c \pi_c \int p(x_\text{obs}, x_\text{mis} \mid c)\,
            dx_\text{mis}

        It is exact for ``Gaussian``, ``GaussianMixtures`` and ``MultivariateNormal`` components,
        and for autoregressive flows where the missing entries come last in the order of each
        layer. Elsewhere it is an importance-weighted mean: see
        :func:`pyro_vmonf.distributions.partial.importance`.

        Arguments:
            x: rows ``(N, D)``, with NaN for missing entries.
            given: their context ``(N, H)``, where the mixture depends on one.
            draws: of each missing entry where importance weights are needed.
            seed: seed of the draws; the global state is then left alone.
            chunk_size: rows evaluated at once, at most.

        Warns:
            RuntimeWarning: where fewer than 13 effective draws count for a row.

        Raises:
            ValueError: if the rows do not fit, or a number is below one.

        References:
            Mattei, Frellsen (2019), MIWAE: deep generative modelling and imputation of incomplete
            data, arXiv:1812.02633.

        Example:
            >>> from pyro_vmonf import FlowMixture, Gaussian, VMoNF
            >>> vmonf = VMoNF(FlowMixture(Gaussian(2, 3)))
            >>> x = torch.tensor([[0.5, torch.nan], [torch.nan, torch.nan]])
            >>> vmonf.partial_log_prob(x).log_prob[1].abs() < 1e-6
            tensor(True)
        """
        check_follows(self.model, "partial_log_prob", "mixture")
        rows, given = self._rows(x, given)
        whole = (~rows.flatten(1).isnan().any(1)).nonzero().squeeze(1)
        log_prob = rows.new_zeros(len(rows))
        error, effective = torch.zeros_like(log_prob), torch.ones_like(log_prob)
        counts = [log_prob[:0]]
        if len(whole):
            beside = None if given is None else given[whole]
            found = self.log_prob(rows[whole], given=beside, chunk_size=chunk_size)
            log_prob[whole] = found.to(log_prob)
        for index, joint, log_r, partial in self._partial(rows, given, draws, seed, chunk_size):
            r = log_r.exp()
            log_prob[index] = joint.logsumexp(-1).to(log_prob)
            error[index] = (r * partial.error).square().sum(-1).sqrt().to(error)
            effective[index] = (r * partial.effective).sum(-1).to(effective)
            counts.append(partial.draws_that_count(log_r, draws))
        warn_of_few(torch.cat(counts), draws)
        return PartialLogProb(log_prob, error, effective)

    @torch.no_grad()
    def impute(
        self,
        x: Any,
        *,
        given: Any = None,
        draws: int | None = None,
        seed: int | None = 0,
        chunk_size: int = 8192,
    ) -> Completed:
        r"""Fill in missing entries, by :math:`p(x_\text{mis} \mid x_\text{obs})`.

        Without ``draws`` an entry gets its conditional mean, which is no typical row where clusters
        or curves are possible. Several draws keep the spread. The mean of a flow without a closed
        form is that of 256 draws, also where ``effective`` is one.

        Arguments:
            x: rows ``(N, D)``, with NaN for missing entries.
            given: their context ``(N, H)``, where the mixture depends on one.
            draws: completed rows of each row.
            seed: seed of the draws; the global state is then left alone.
            chunk_size: rows evaluated at once, at most.

        Warns:
            RuntimeWarning: where fewer than 13 effective draws count for a row.

        Raises:
            ValueError: if the rows do not fit, or a number is below one.

        References:
            Rubin (1987), Multiple imputation for nonresponse in surveys.

        Example:
            >>> from pyro_vmonf import FlowMixture, Gaussian, VMoNF
            >>> vmonf = VMoNF(FlowMixture(Gaussian(2, 3)))
            >>> x = torch.tensor([[0.5, torch.nan], [0.5, 1.0]])
            >>> vmonf.impute(x, draws=4).x.shape, vmonf.impute(x).x[1].tolist()
            (torch.Size([4, 2, 2]), [0.5, 1.0])
        """
        check_follows(self.model, "impute", "mixture")
        count = None if draws is None else check_positive("draws", draws)
        rows, given = self._rows(x, given)
        filled = rows.clone() if count is None else rows.repeat(count, 1, 1)
        effective = rows.new_ones(len(rows))
        counts = [effective[:0]]
        for index, _, log_r, partial in self._partial(rows, given, DRAWS, seed, chunk_size):
            r = log_r.exp()
            if count is None:
                mean = partial.mean()
                # The sum of r is one to rounding only, which counts far from zero.
                first = mean[..., :1, :]
                mean = first + (r.unsqueeze(-1) * (mean - first)).sum(-2, keepdim=True)
                filled[index] = mean.squeeze(-2).to(filled)
            else:
                c = Categorical(logits=log_r, validate_args=False).sample(torch.Size((count,)))
                draw = partial.draw(count).take_along_dim(c[..., None, None], -2)
                filled[:, index] = draw.squeeze(-2).to(filled)
            effective[index] = (r * partial.effective).sum(-1).to(effective)
            counts.append(partial.draws_that_count(log_r, DRAWS))
        filled = torch.where(rows.isnan(), filled, rows)
        warn_of_few(torch.cat(counts), DRAWS)
        return Completed(filled, effective)

    def _rows(self, x: Any, given: Any) -> tuple[Tensor, Tensor | None]:
        """Return rows, which may have gaps, and their context."""
        rows = self.model.rows(x, missing=True)
        like, features = floating_buffer(self), self.model.context_features
        return rows, check_context_rows(given, len(rows), features, like)

    def _partial(
        self, rows: Tensor, given: Tensor | None, draws: int, seed: int | None, chunk_size: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Partial]]:
        """Go through rows with gaps: positions, log p(x, c), log p(c|x), and what is known."""
        check_positive("draws", draws)
        chunk_size = check_positive("chunk_size", chunk_size)
        gaps = rows.flatten(1).isnan().any(1).nonzero().squeeze(1)
        with local_seed(seed), evaluating(self):
            while len(gaps):
                given_one = None if given is None else given[gaps[:1]]
                size = min(chunk_size, rows_at_once(self.model.components(given_one), draws))
                index, gaps = gaps[:size], gaps[size:]
                mixture = self.model.mixture(None if given is None else given[index])
                partial = observe(mixture.components, rows[index].unsqueeze(-2), draws)
                joint = mixture.log_weights + partial.log_prob
                yield index, joint, posterior_of_joint(joint, mixture.log_weights, None), partial


def warn_of_few(counts: Tensor, draws: int) -> None:
    """Warn of rows whose importance weights rest on few draws.

    Arguments:
        counts: numbers of effective draws of the rows with gaps, infinite where a row is exact.
        draws: of each row.
    """
    few = counts < FEW
    if few.any():
        warn(
            f"{int(few.sum())} of {len(few)} rows with missing entries rest on less than {FEW} "
            f"effective draws of {draws} importance-weighted ones (the least: "
            f"{float(counts.min()):.1f}): their densities and clusters are rough; "
            "partial_log_prob(draws=...) takes more, and gives a standard error, which is too "
            "small for these rows"
        )
