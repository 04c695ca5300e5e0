"""Compiled densities and networks against the same without."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch._inductor import config as inductor

from pyro_vmonf import FlowMixture, RealNVP, SoftmaxGuide, VMoNF
from pyro_vmonf.nn import MLP


@pytest.fixture(scope="module")
def pair() -> VMoNF:
    torch.manual_seed(0)
    bank = RealNVP(2, 3, blocks=1, hidden=(4,))
    return VMoNF(FlowMixture(bank), SoftmaxGuide(MLP(2, 3, hidden=(4,)))).double()


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    """The compiler's own processes take longer to start than these programs to compile."""
    with inductor.patch(compile_threads=1):
        yield


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_equals_eager(pair: VMoNF) -> None:
    compiled = copy.deepcopy(pair)
    compiled.compile()
    x = torch.randn(50, 2, dtype=torch.float64)
    losses = []
    for one in (pair, compiled):
        rows = x.unsqueeze(-2)
        loss = one.model.components().log_prob(rows).sum() + one.guide.log_q(x).square().sum()
        one.zero_grad()
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-12, atol=1e-12)
    for one, other in zip(compiled.parameters(), pair.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_a_copy_of_a_compiled_pair_has_its_own_parameters(pair: VMoNF) -> None:
    compiled = copy.deepcopy(pair)
    compiled.compile()
    changed = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in changed.model.parameters():
            parameter.mul_(2)
    plain = copy.deepcopy(pair)
    plain.load_state_dict(changed.state_dict())
    x = torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(changed.log_prob(x), plain.log_prob(x))
    assert not torch.allclose(changed.log_prob(x), compiled.log_prob(x))


def test_fit_compiles_where_asked(pair: VMoNF, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(VMoNF, "compile", lambda self: called.append(self))
    one = copy.deepcopy(pair)
    one.fit(torch.randn(20, 2), epochs=1, progress=False)
    assert not called
    one.fit(torch.randn(20, 2), epochs=1, compile=True, progress=False)
    assert called == [one]
