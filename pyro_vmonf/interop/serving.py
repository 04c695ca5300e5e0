"""A fitted mixture for serving: a program without this library, and tensors without pickle."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vmonf._utils.contexts import evaluating, own_filters
from pyro_vmonf._utils.validation import check_alone, check_unconditional, floating_buffer
from pyro_vmonf._version import __version__
from pyro_vmonf.files import difference, settings_of
from pyro_vmonf.program import check_follows, unregistered
from pyro_vmonf.vmonf import VMoNF


class Scores(nn.Module):
    r"""Log-density and responsibilities of rows, in tensors alone.

    Arguments:
        vmonf: the pair.

    Returns:
        :math:`\log p(x)` ``(N,)`` and :math:`q(c|x)` ``(N, K)`` of rows ``(N, *event_shape)``, as
        ``log_prob`` and ``predict_proba`` return them. A row with NaN has NaN as its answer.

    Example:
        >>> from pyro_vmonf import FlowMixture, RealNVP
        >>> log_prob, q = Scores(VMoNF(FlowMixture(RealNVP(2, 3))))(torch.zeros(5, 2))
        >>> log_prob.shape, q.shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    def __init__(self, vmonf: VMoNF) -> None:
        super().__init__()
        check_unconditional("Scores", vmonf.model.context_features)
        check_follows(vmonf.model, "Scores", "mixture")
        self.model, self.guide = vmonf.model, vmonf.guide

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gap = x.isnan().flatten(1).any(1)
        x = torch.where(gap.reshape(-1, *(1,) * (x.dim() - 1)), 0.0, x)
        with unregistered(), evaluating(self):  # as the verbs are, also after a fit
            mixture = self.model.mixture()
            log_prob, q = mixture.log_prob(x), self.guide.log_posterior(x).exp()
            if self.model.bounded:  # as the verbs say of rows outside the support
                outside = self.model.is_outside(x).unsqueeze(-1)
                q = torch.where(outside, mixture.log_weights.exp(), q)
        nan = log_prob.new_tensor(torch.nan)
        return torch.where(gap, nan, log_prob), torch.where(gap.unsqueeze(-1), nan, q)


def export(vmonf: VMoNF, *, dtype: torch.dtype | None = None) -> torch.export.ExportedProgram:
    """Return log-density and responsibilities as a program that needs torch alone.

    ``torch.export.save`` writes it, and ``torch.export.load(path).module()(x)`` runs it in a
    process without this library, for any number of rows. A compiler such as AOTInductor takes it.

    Arguments:
        vmonf: the pair.
        dtype: of the rows; by default that of the pair. Rows far from zero need ``torch.float64``.

    Raises:
        TypeError: if the pair is of sequences.
        ValueError: if the mixture depends on a context, or torch cannot trace a part of the pair.
    """
    check_alone("export", vmonf.model.of_sequences)
    scores = Scores(vmonf)
    like = floating_buffer(vmonf)
    rows = vmonf.sample(3, seed=0)[0].to(dtype or like.dtype)
    dimensions = ({0: torch.export.Dim("rows", min=1)},)
    with evaluating(scores), own_filters(), torch.no_grad():
        try:
            return torch.export.export(scores, (rows,), dynamic_shapes=dimensions, strict=False)
        except Exception as error:  # torch has errors of many kinds for it
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ValueError(
                "torch.export cannot trace this pair; the flows and guides of this library can be "
                "traced, and distributions of torch or flows of others often cannot (a check of "
                f"their arguments reads values): {reason}"
            ) from error


def to_safetensors(vmonf: VMoNF, path: str | os.PathLike[str]) -> None:
    """Write parameters and buffers as a safetensors file; ``vmonf.save`` writes the parts as well.

    Arguments:
        vmonf: the pair.
        path: the file.

    Raises:
        ImportError: if safetensors is missing.
        OSError: if the file cannot be written.
    """
    names = vmonf.model.feature_names
    metadata = {
        "pyro_vmonf": __version__,
        "feature_names": json.dumps(names and list(names)),
        "settings": json.dumps(settings_of(vmonf, terms=False)),
    }
    library = _safetensors()
    import safetensors

    try:
        library.save_model(vmonf, os.fspath(path), metadata=metadata)
    except safetensors.SafetensorError as error:
        raise OSError(f"{os.fspath(path)} cannot be written: {error}") from error


def from_safetensors_(vmonf: VMoNF, path: str | os.PathLike[str]) -> None:
    """Fill a pair with what :func:`to_safetensors` wrote of a pair with the same parts.

    Arguments:
        vmonf: the pair, freshly built.
        path: the file.

    Raises:
        ImportError: if safetensors is missing.
        OSError: if the file cannot be read.
        ValueError: if the file is of other parts; the pair is then as it was.
    """
    library = _safetensors()
    import safetensors

    try:
        found = library.load_file(os.fspath(path))
        with safetensors.safe_open(os.fspath(path), "pt") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(f"{os.fspath(path)} is no safetensors file: {error}") from error
    settings = json.loads(metadata.get("settings", "{}"))  # those of earlier versions have none
    if differs := difference(settings_of(vmonf, terms=False), settings):
        raise ValueError(f"{os.fspath(path)} is of a pair with other parts: {differs}")
    own = vmonf.state_dict()
    # One name stands for tensors that share their memory.
    whole = {name: found.get(name) for name in own}
    unknown = sorted(found.keys() - own.keys())
    missing = [name for name in whole if whole[name] is None and not _is_shared(own, name, found)]
    other = [
        name
        for name, value in whole.items()
        if value is not None and value.shape != own[name].shape
    ]
    if unknown or missing or other:
        named = ", ".join([*unknown, *missing, *other][:5])
        raise ValueError(f"{os.fspath(path)} is of a pair with other parts: they differ in {named}")
    # The location of the units has the digits that it needs.
    kinds = {
        (v.dtype, own[name].dtype)
        for name, v in whole.items()
        if v is not None and not name.endswith("standardizer.loc")
    }
    for theirs, ours in kinds:
        if theirs != ours:
            raise ValueError(
                f"{os.fspath(path)} has numbers in {theirs} where the pair has {ours}; convert the "
                f"pair first: vmonf.to({theirs})"
            )
    vmonf.load_state_dict({name: v for name, v in whole.items() if v is not None}, strict=False)
    if "feature_names" in metadata:  # files of earlier versions have none
        names = json.loads(metadata["feature_names"])
        vmonf.model.feature_names = names and tuple(names)


def _is_shared(own: dict[str, Tensor], name: str, found: dict[str, Tensor]) -> bool:
    """Return whether a tensor is in the file under another name."""
    place = own[name].data_ptr()
    return any(other in found and own[other].data_ptr() == place for other in own)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("safetensors is missing: pip install safetensors") from error
    return safetensors.torch
