"""Programs and tensors for serving say what the verbs say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pyro_vmonf import FlowMixture, Gaussian, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.interop.serving import Scores, export, from_safetensors_, to_safetensors
from pyro_vmonf.nn import MLP

D, K = 2, 3


def pair(seed: int = 0, components: int = K) -> VMoNF:
    torch.manual_seed(seed)
    bank = RealNVP(D, components, blocks=1, hidden=(4,))
    vmonf = VMoNF(FlowMixture(bank, "learned"), SoftmaxGuide(MLP(D, components), temperature=0.3))
    with torch.no_grad():
        for parameter in vmonf.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    vmonf.model.standardize_(3 + 2 * torch.randn(50, D))
    return vmonf


def test_the_exported_program_returns_what_the_verbs_return(tmp_path: Path) -> None:
    vmonf = pair().train()
    torch.export.save(export(vmonf), tmp_path / "scores.pt2")
    program = torch.export.load(tmp_path / "scores.pt2").module()
    for rows in (1, 3, 40):  # also numbers other than that of the example
        x = 3 + 2 * torch.randn(rows, D)
        log_prob, q = program(x)
        torch.testing.assert_close(log_prob, vmonf.log_prob(x))
        torch.testing.assert_close(q, vmonf.predict_proba(x))
    assert all(module.training for module in vmonf.modules())


@pytest.mark.filterwarnings("ignore:rows .* lie outside the support")
def test_rows_outside_the_support_have_the_weights() -> None:
    normal = torch.distributions.Uniform(torch.zeros(K, D), 1.0, validate_args=False)
    weights = torch.tensor([0.2, 0.3, 0.5])
    vmonf = VMoNF(FlowMixture(torch.distributions.Independent(normal, 1), weights))
    x = torch.tensor([[0.5, 0.5], [2.0, 0.5]])
    log_prob, q = Scores(vmonf)(x)
    torch.testing.assert_close(q, vmonf.predict_proba(x))
    torch.testing.assert_close(log_prob, vmonf.log_prob(x))


def test_a_context_is_refused() -> None:
    vmonf = VMoNF(FlowMixture(RealNVP(D, K, context_features=2, blocks=2)))
    with pytest.raises(ValueError, match="context"):
        export(vmonf)


def test_tensors_go_to_a_file_and_back(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    vmonf, twin, x = pair(), pair(seed=1), torch.randn(9, D)
    to_safetensors(vmonf, tmp_path / "pair.safetensors")
    from_safetensors_(twin, tmp_path / "pair.safetensors")
    assert torch.equal(twin.log_prob(x), vmonf.log_prob(x))
    assert torch.equal(twin.predict_proba(x), vmonf.predict_proba(x))


def test_tensors_of_other_parts_leave_the_pair_alone(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    vmonf, x = pair(), torch.randn(9, D)
    before = vmonf.log_prob(x)
    to_safetensors(pair(components=4), tmp_path / "four")
    to_safetensors(VMoNF(FlowMixture(Gaussian(D, K))), tmp_path / "gaussian")
    (tmp_path / "text").write_text("no tensors")
    for name, message in (
        ("four", "other parts"),
        ("gaussian", "other parts"),
        ("text", "no safetensors file"),
    ):
        with pytest.raises(ValueError, match=message):
            from_safetensors_(vmonf, tmp_path / name)
        assert torch.equal(vmonf.log_prob(x), before)


def test_a_file_of_another_precision_is_refused(tmp_path: Path) -> None:
    """Its numbers would lose digits."""
    pytest.importorskip("safetensors")
    one, other = (VMoNF(FlowMixture(RealNVP(2, 3, blocks=2))) for _ in range(2))
    to_safetensors(one.double(), tmp_path / "pair.safetensors")
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"float64 where the pair has torch.float32; .* vmonf.to"):
        from_safetensors_(other, tmp_path / "pair.safetensors")
    assert all(torch.equal(other.state_dict()[name], value) for name, value in before.items())
    from_safetensors_(other.to(torch.float64), tmp_path / "pair.safetensors")
    x = torch.randn(5, 2).double()
    assert torch.equal(one.log_prob(x), other.log_prob(x))
