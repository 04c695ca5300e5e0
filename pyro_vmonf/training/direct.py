"""The ELBO of a plain mixture as one formula, without the sites of the program."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from pyro_vmonf.program import Rows, follows, log_evidence


def is_plain(model: Any, guide: Any) -> bool:
    """Return whether model and guide say in tensors what their sites are.

    Each has a member ``parts`` that is as new as its program, and no part that draws.
    """
    return (
        follows(model, "parts", "terms")
        and follows(guide, "parts", program=("forward", "infer"))
        and model.sums_directly()
        and guide.sums_directly()
    )


@torch.no_grad()
def takes_part(q: Tensor, joint: Iterable[Tensor]) -> Tensor:
    r"""Return which components have a part in the sum over c ``(*, K)``.

    A part is :math:`q_c` times what it multiplies. Of parts below the root of the smallest number
    the sum has no digit. Their gradients are denormal numbers, with which a processor is ten times
    as slow.

    Arguments:
        q: probabilities ``(*, K)``.
        joint: the logarithms that they multiply.
    """
    kind = torch.finfo(q.dtype)
    size = sum((value.abs() for value in joint), start=torch.ones_like(q))
    # What is no number takes part, so that the sum is none either.
    return (q > 0) & ~(q * size <= min(kind.tiny**0.5, kind.eps**2))


def direct_terms(
    model: Any,
    guide: Any,
    x: Tensor,
    y: Tensor | None = None,
    index: Tensor | None = None,
    size: int | None = None,
    sample_weight: Tensor | None = None,
    given: Tensor | None = None,
) -> dict[str, Tensor]:
    r"""Return the terms whose sum is the ELBO of the rows, by name.

    .. math::
        \sum_n s_n \Big[\sum_c q(c|x_n) \big(\log p(x_n|c) + \log\pi_c + \log p(y_n|c)
        - \log q(c|x_n)\big) - \sum_t w_t\,\mathrm{penalty}_t(x_n)\Big]

    with :math:`s_n` the rows of the data set by those of the batch, and the weight of the row.

    Arguments:
        model, guide: a plain pair.
        x, y, index, size, sample_weight, given: as in the call of the model.
    """
    count = x.shape[0]  # len() would close the number of rows in a graph
    scale = 1.0 if size is None else size / count
    rows = Rows(x, y, index, size, sample_weight, given, 1.0 if size is None else count / size)
    if hasattr(model, "terms"):  # another model, which says them itself
        return model.terms(guide, rows)  # type: ignore[no-any-return]
    positions = torch.arange(count, device=x.device) if index is None else index
    logits, penalties = guide.parts(rows, positions)
    log_weights, log_prob = model.parts(rows)
    joint = {"log_likelihood": log_prob, "log_prior": log_weights}
    if y is not None:
        joint["evidence"] = log_evidence(y, log_prob.shape[-1], log_weights.dtype)
    if logits is None:  # the exact posterior takes the place of q
        logits = torch.stack(torch.broadcast_tensors(*joint.values())).sum(0)
    log_q = logits.log_softmax(-1)
    q = log_q.exp()
    possible = takes_part(q, joint.values())
    weight = q * scale
    if sample_weight is not None:
        weight = weight * sample_weight.unsqueeze(-1)
        possible = possible & (sample_weight > 0).unsqueeze(-1)

    def expected(value: Tensor) -> Tensor:
        # What is impossible, or does not count, is worth nothing and gives no gradient.
        return (weight * value.where(possible, 0.0)).sum()

    terms = {name: expected(value) for name, value in joint.items()}
    terms["entropy"] = -expected(log_q)
    for name, penalty in penalties.items():
        each = penalty.expand(count)  # one number stands for all rows
        if sample_weight is not None:
            each = torch.where(sample_weight > 0, each * sample_weight, 0.0)
        terms[name] = -scale * each.sum()
    return terms
