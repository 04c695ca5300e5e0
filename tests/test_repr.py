"""What objects say of themselves: repr, HTML and progress bars."""

from __future__ import annotations

import html.parser
import inspect
import io
import itertools
import math
import pkgutil
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
import torch
import tqdm
from pyro.distributions import Dirichlet, Normal
from torch import nn

import pyro_vmonf
from pyro_vmonf import (
    FlowMixture,
    Gaussian,
    History,
    RealNVP,
    SoftmaxGuide,
    VMoNF,
    datasets,
    distortions,
    schedules,
    terms,
    transforms,
    weight_priors,
)
from pyro_vmonf import (
    nn as networks,
)
from pyro_vmonf._utils.html import sparkline
from pyro_vmonf._utils.progress import Stages, progress_bar
from pyro_vmonf._utils.repr import arguments_of
from pyro_vmonf.flows import functional

K = 3


def mixture() -> FlowMixture:
    return FlowMixture(Gaussian(2, K))


def components() -> torch.distributions.Distribution:
    return Gaussian(2, K)()


def bound(guide: Any) -> Any:
    guide.bind_(mixture())
    return guide


SHAPES = f"components={K}, event_shape=(2,)"
# Each public class, how one is made, and what its repr begins with.
PUBLIC: dict[str, tuple[Callable[[], Any], str]] = {
    "MAF": (lambda: pyro_vmonf.MAF(2, K), "MAF(\n  features=2, components=3\n"),
    "NSF": (lambda: pyro_vmonf.NSF(2, K, bins=4), "NSF(\n  features=2, components=3, bins=4\n"),
    "AutoregressiveNSF": (
        lambda: pyro_vmonf.AutoregressiveNSF(1, K),
        "AutoregressiveNSF(\n  features=1, components=3\n",
    ),
    "ExactGuide": (lambda: bound(pyro_vmonf.ExactGuide()), f"ExactGuide({SHAPES})"),
    "FixedWeights": (
        lambda: pyro_vmonf.FixedWeights(torch.tensor([1.0, 2.0])),
        "FixedWeights(probs=[0.3333, 0.6667])",
    ),
    "Flow": (
        lambda: pyro_vmonf.Flow([transforms.PReLU(2)], base=Gaussian(2, K)),
        "Flow(\n  (base): Gaussian(features=2, components=3)\n",
    ),
    "FlowDistribution": (
        lambda: RealNVP(2, K)(),
        "FlowDistribution(batch_shape=(3,), event_shape=(2,))",
    ),
    "FlowMixture": (mixture, f"FlowMixture(\n  {SHAPES}\n  (bank): Gaussian("),
    "Glow": (
        lambda: pyro_vmonf.Glow((1, 4, 4), K, blocks=1),
        "Glow(\n  image_shape=(1, 4, 4), components=3, blocks=1\n",
    ),
    "ImageNSF": (
        lambda: pyro_vmonf.ImageNSF((1, 4, 4), K, blocks=1, bins=4),
        "ImageNSF(\n  image_shape=(1, 4, 4), components=3, blocks=1, bins=4\n",
    ),
    "MAFMoG": (lambda: pyro_vmonf.MAFMoG(2, K), "MAFMoG(\n  features=2, components=3\n"),
    "MultiScaleRealNVP": (
        lambda: pyro_vmonf.MultiScaleRealNVP((1, 4, 4), K, blocks=1),
        "MultiScaleRealNVP(\n  image_shape=(1, 4, 4), components=3, blocks=1\n",
    ),
    "PixelFlow": (
        lambda: pyro_vmonf.PixelFlow((1, 4, 4), K, squeezes=1),
        "PixelFlow(\n  image_shape=(1, 4, 4), components=3, squeezes=1\n",
    ),
    "GatedWeights": (
        lambda: pyro_vmonf.GatedWeights(nn.Linear(4, K), K),
        "GatedWeights(\n  num_components=3\n  (network): Linear(",
    ),
    "GammaDirichlet": (
        lambda: pyro_vmonf.GammaDirichlet(K, 2.0),
        "GammaDirichlet(num_components=3, shape=2.0, rate=1.0)",
    ),
    "GroupWeights": (
        lambda: pyro_vmonf.GroupWeights(4, K),
        "GroupWeights(\n  num_groups=4, num_components=3\n",
    ),
    "Gaussian": (lambda: Gaussian(2, K), "Gaussian(features=2, components=3)"),
    "History": (lambda: History([0], [1], [-2.0], seconds=3.0), "History(1 epochs, 3.0 s, elbo=-2"),
    "LearnedWeights": (lambda: pyro_vmonf.LearnedWeights(K), "LearnedWeights(\n  num_components=3"),
    "Marginal": (
        lambda: mixture().mixture(),
        "Marginal(components=3, batch_shape=(), event_shape=(2,))",
    ),
    "MarginalGuide": (lambda: bound(pyro_vmonf.MarginalGuide()), f"MarginalGuide({SHAPES})"),
    "MarkovMixture": (
        lambda: pyro_vmonf.MarkovMixture(Gaussian(2, K)),
        f"MarkovMixture(\n  {SHAPES}\n  (bank): Gaussian(",
    ),
    "MarkovVMoNF": (
        lambda: pyro_vmonf.MarkovVMoNF(pyro_vmonf.MarkovMixture(Gaussian(2, K))),
        f"MarkovVMoNF(\n  {SHAPES}, fitted=False\n  (model): MarkovMixture(",
    ),
    "MixtureComponent": (
        lambda: pyro_vmonf.MixtureComponent(mixture()),
        f"MixtureComponent(\n  (model): FlowMixture(\n    {SHAPES}\n",
    ),
    "PyroGuide": (
        lambda: bound(pyro_vmonf.PyroGuide([pyro_vmonf.ExactGuide()])),
        "PyroGuide(\n  ",
    ),
    "RandomBank": (
        lambda: pyro_vmonf.RandomBank(Gaussian(2, K), Normal(0.0, 2.0), scale=None),
        "RandomBank(\n  (bank): Gaussian(features=2, components=3)\n"
        "  (prior): ConstantDistribution(Normal(loc: 0.0, scale: 2.0))",
    ),
    "RandomWeights": (
        lambda: pyro_vmonf.RandomWeights(torch.ones(K)),
        "RandomWeights(\n  num_components=3\n"
        "  (prior): DirichletPrior(concentration=[1.0, 1.0, 1.0])",
    ),
    "RealNVP": (
        lambda: RealNVP(2, K, blocks=2, context_features=4),
        "RealNVP(\n  features=2, components=3, blocks=2, context_features=4\n"
        "  (base): StandardNormal(features=2, components=3)",
    ),
    "Replicated": (
        lambda: pyro_vmonf.Replicated(lambda: Normal(torch.zeros(2), 1.0).to_event(1), K),
        "Replicated(\n  components=3, ",
    ),
    "RotatedRealNVP": (
        lambda: pyro_vmonf.RotatedRealNVP(K),
        "RotatedRealNVP(\n  components=3\n",
    ),
    "SoftmaxGuide": (
        lambda: bound(SoftmaxGuide(networks.MLP(2, K), temperature=0.5, elbo_gradient=0.2, top=2)),
        f"SoftmaxGuide(\n  {SHAPES}, temperature=0.5, elbo_gradient=0.2, top=2\n  (network): MLP(",
    ),
    "Stack": (
        lambda: pyro_vmonf.Stack([Gaussian(2, 1), RealNVP(2, 2)]),
        "Stack(\n  (parts): ModuleList(\n    (0): Gaussian(features=2, components=1)",
    ),
    "StickBreaking": (
        lambda: pyro_vmonf.StickBreaking.process(K),
        "StickBreaking(a: torch.Size([2]), b: torch.Size([2]))",
    ),
    "TrainingLoss": (
        lambda: pyro_vmonf.TrainingLoss(VMoNF(mixture())),
        "TrainingLoss(\n  (objective): Objective(\n    (model): FlowMixture(",
    ),
    "UpdatedWeights": (
        lambda: pyro_vmonf.UpdatedWeights(K, rate=0.5),
        "UpdatedWeights(\n  num_components=3, rate=0.5",
    ),
    "VMoNF": (lambda: VMoNF(mixture()), f"VMoNF(\n  {SHAPES}, fitted=False\n  (model): FlowMix"),
}


def test_no_module_takes_the_place_of_a_public_name() -> None:
    """An import of ``pyro_vmonf.name``, which others do, would put the module there."""
    modules = {module.name for module in pkgutil.iter_modules(pyro_vmonf.__path__)}
    assert not modules & set(pyro_vmonf.__all__)


@pytest.mark.parametrize("name", pyro_vmonf.__all__)
def test_public_objects_say_what_they_are(name: str) -> None:
    thing = getattr(pyro_vmonf, name)
    if inspect.isfunction(thing) or name in ("__version__", "stacked"):
        return
    make, start = PUBLIC[name]
    assert isinstance(make(), thing)
    assert repr(make()).startswith(start), repr(make())


OTHERS: list[tuple[Callable[[], Any], str]] = [
    (lambda: pyro_vmonf.select(components(), torch.zeros(4).long()),
     "Selected(components=3, batch_shape=(4,), event_shape=(2,))"),
    (lambda: pyro_vmonf.stacked([components(), Gaussian(2, 1)()]),
     "StackedDistribution(batch_shape=(4,), event_shape=(2,))"),
    (lambda: functional.WithParameters(Gaussian(2, K), {}),
     "WithParameters(batch_shape=(3,), event_shape=(2,))"),
    (lambda: pyro_vmonf.Replicated(lambda: Normal(torch.zeros(2), 1.0).to_event(1), K)(),
     "ReplicatedDistribution(batch_shape=(3,), event_shape=(2,))"),
    (lambda: pyro_vmonf.constant(0.5), "Constant(value=0.5)"),
    (lambda: pyro_vmonf.exponential_decay(1e-3),
     "ExponentialDecay(rate=0.001, initial=1.0, floor=0.1)"),
    (lambda: pyro_vmonf.linear_decay(10), "Linear(steps=10, initial=1.0, final=0.1)"),
    (lambda: schedules.cooling(0.2), "Cooling(final=0.2, share=0.5)"),
    (lambda: transforms.Affine(2), "Affine(features=2)"),
    (lambda: transforms.AffineAutoregressive(2, hidden=(5,)),
     "AffineAutoregressive(features=2, order=[0, 1], hidden=(5,))"),
    (lambda: transforms.AffineCoupling(2, bound=1.0, batch_shape=(K,)),
     "AffineCoupling(features=2, bound=1.0, mask=[True, False], batch_shape=(3,))"),
    (lambda: transforms.SplineCoupling(16, bins=4),
     "SplineCoupling(features=16, bins=4, mask=tensor of shape (16,))"),
    (lambda: transforms.SplineAutoregressive(1, context_features=2),
     "SplineAutoregressive(features=1, order=[0], context_features=2)"),
    (lambda: transforms.Coupling(2, transforms.ShiftAndScale(2.0)),
     "Coupling(features=2, univariate=ShiftAndScale(bound=2.0), mask=[True, False])"),
    (lambda: transforms.Autoregressive(2, transforms.RationalQuadratic(4, 3.0)),
     "Autoregressive(features=2, univariate=RationalQuadratic(bins=4, bound=3.0), order=[0, 1])"),
    (lambda: transforms.ActNorm(2), "ActNorm(channels=2)"),
    (lambda: transforms.AffineImageAutoregressive((1, 2, 2), backwards=True),
     "AffineImageAutoregressive(image_shape=(1, 2, 2), backwards=True)"),
    (lambda: transforms.AffineImageCoupling((2, 2, 2), flip=True, batch_shape=(K,)),
     "AffineImageCoupling(image_shape=(2, 2, 2), flip=True, batch_shape=(3,))"),
    (lambda: transforms.InvertibleConvolution(2), "InvertibleConvolution(channels=2)"),
    (lambda: transforms.MixtureAutoregressive(1, mixtures=2),
     "MixtureAutoregressive(features=1, mixtures=2, order=[0])"),
    (lambda: transforms.SplineImageAutoregressive((1, 2, 2), bins=4),
     "SplineImageAutoregressive(image_shape=(1, 2, 2), bins=4)"),
    (lambda: transforms.SplineImageCoupling((2, 2, 2), bins=4),
     "SplineImageCoupling(image_shape=(2, 2, 2), bins=4)"),
    (lambda: transforms.Split([transforms.ActNorm(2)]),
     "Split(\n  (transforms): ModuleList(\n    (0): ActNorm(channels=2)"),
    (lambda: transforms.Squeezed([transforms.ActNorm(4)]),
     "Squeezed(\n  (transforms): ModuleList(\n    (0): ActNorm(channels=4)"),
    (lambda: transforms.BatchNorm(2, momentum=0.5), "BatchNorm(features=2, momentum=0.5)"),
    (lambda: transforms.ContextAffine(2, 3), "ContextAffine(features=2, context_features=3)"),
    (lambda: transforms.Logit(), "Logit()"),
    (lambda: transforms.PReLU(2, slope=0.1), "PReLU(features=2, slope=0.1)"),
    (lambda: transforms.Permutation(2, order=[1, 0]), "Permutation(features=2, order=[1, 0])"),
    (lambda: transforms.Rotation(2, batch_shape=(K,)), "Rotation(features=2, batch_shape=(3,))"),
    (lambda: transforms.Standardize((2,)), "Standardize(event_shape=(2,))"),
    (lambda: terms.Classification(), "Classification(weight=1.0)"),
    (lambda: terms.Balance(weight=pyro_vmonf.linear_decay(5)),
     "Balance(weight=Linear(steps=5, initial=1.0, final=0.1))"),
    (lambda: terms.Confidence(weight=2.0), "Confidence(weight=2.0)"),
    (lambda: terms.Consistency(torch.sin), "Consistency(distort=sin, weight=1.0)"),
    (lambda: terms.CustomTerm(torch.cos), "CustomTerm(penalty=cos, weight=1.0)"),
    (lambda: distortions.Jitter(0.5), "Jitter(scale=0.5)"),
    (lambda: distortions.Adversarial(iterations=2), "Adversarial(iterations=2)"),
    (lambda: distortions.AffineImages((1, 4, 5)), "AffineImages(image_shape=(1, 4, 5))"),
    (lambda: distortions.RandomWalk(torch.randn(50, 2), length=8),
     "RandomWalk(x=tensor of shape (50, 2), length=8)"),
    (lambda: weight_priors.DirichletPrior(torch.ones(99)),
     "DirichletPrior(concentration=tensor of shape (99,))"),
    (lambda: datasets.Pinwheel(wings=3), "Pinwheel(wings=3)"),
    (lambda: datasets.TwoCircles(noise=0.1), "TwoCircles(noise=0.1)"),
    (lambda: SoftmaxGuide(nn.Linear(2, K)), "SoftmaxGuide(\n  bound to no model, temperature=1\n"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "start"), OTHERS, ids=[start[:20] for _, start in OTHERS])
def test_others_do_too(make: Callable[[], Any], start: str) -> None:
    assert repr(make()).startswith(start), repr(make())


def test_every_transform_is_in_the_table() -> None:
    shown = {start.split("(")[0] for _, start in OTHERS}
    abstract = {
        *("FlowTransform", "ImageTransform", "ImageCoupling", "ImageAutoregressive"),
        *("Univariate", "RationalQuadratic", "ShiftAndScale", "MixtureOfGaussians"),
    }
    classes = {name for name in transforms.__all__ if inspect.isclass(getattr(transforms, name))}
    assert classes - abstract <= shown


def test_a_report_shows_its_table() -> None:
    report = VMoNF(mixture()).report(torch.randn(20, 2))
    first, second, *rest = repr(report).splitlines()
    assert first == "ComponentReport of 3 components"
    assert second.startswith("component     weight      usage")
    assert rest == str(report).splitlines()[1:]


def test_repr_leaves_pyros_store_and_the_buffers_alone() -> None:
    vmonf = VMoNF(FlowMixture(pyro_vmonf.RandomBank(Gaussian(2, K)), Dirichlet(torch.ones(K))))
    pyro.clear_param_store()
    repr(vmonf), vmonf._repr_html_()
    assert not pyro.get_param_store().keys()


def test_a_fitted_pair_says_so() -> None:
    vmonf = VMoNF(mixture())
    vmonf.fit(torch.randn(20, 2), epochs=1, progress=False)
    assert f"{SHAPES}, fitted=True" in repr(vmonf)
    assert ", context_features=4" in repr(
        FlowMixture(RealNVP(2, K, context_features=4), context_features=4)
    )


def test_a_subclass_shows_its_arguments_without_doing_anything() -> None:
    class Own(transforms.FlowTransform):
        def __init__(self, width: int, depth: int = 2) -> None:
            super().__init__()
            self.width = width

    assert arguments_of(Own(3, 4)) == "width=3, depth=4"


# HTML.


class Reader(html.parser.HTMLParser):
    """Collects the texts of cells, and checks that tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag != "br":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data

    def table(self) -> dict[str, str]:
        return dict(zip(self.cells[::2], self.cells[1::2], strict=True))


ALLOWED = {"div", "strong", "table", "tbody", "tr", "th", "td", "br", "svg", "polyline"}


def test_a_pair_in_a_notebook() -> None:
    vmonf = VMoNF(
        FlowMixture(Gaussian(2, K), torch.tensor([1.0, 1.0, 2.0])),
        SoftmaxGuide(nn.Linear(2, K), temperature=0.5),
    )
    vmonf.model.bank.requires_grad_(False)
    reader = Reader(vmonf._repr_html_())
    assert reader.table() == {
        "components K": "3",
        "event shape": "(2,)",
        "bank": "Gaussian",
        "weights": "FixedWeights: 0.250, 0.250, 0.500",
        "guide": f"SoftmaxGuide, {SHAPES}, temperature=0.5",
        "parameters": "9, and 24 frozen",
        "fitted": "no",
    }
    vmonf.fit(torch.randn(20, 2), epochs=2, progress=False)
    reader = Reader(vmonf._repr_html_())
    assert reader.tags <= ALLOWED
    assert "svg" in reader.tags
    assert reader.table()["fitted"] == repr(vmonf.history)


def test_weights_that_a_card_cannot_list() -> None:
    gated = FlowMixture(
        Gaussian(2, K), pyro_vmonf.GatedWeights(nn.Linear(4, K), K), context_features=4
    )
    table = Reader(VMoNF(gated)._repr_html_()).table()
    assert table["weights"] == "GatedWeights: depend on the rows' context"
    assert table["context features"] == "4"
    many = Reader(VMoNF(FlowMixture(Gaussian(2, 25)))._repr_html_()).table()
    assert many["weights"].endswith("0.040 and 5 more")


def test_a_history_in_a_notebook() -> None:
    history = History(
        epoch=[0, 1, 2], step=[5, 10, 15], elbo=[-3.0, math.nan, -1.0], temperature=[1, 0.5, 0.25],
        held_out=[-4.0, -3.0, -2.0], rejected=2, seconds=1.26, stopped="<b>no gain & so on</b>",
    )  # fmt: skip
    reader = Reader(history._repr_html_())
    assert reader.table() == {
        "epochs": "3",
        "steps": "15",
        "seconds": "1.3",
        "ELBO, nats per row": "-1.0000",
        "held out": "-2.0000",
        "temperature": "0.25",
        "steps rolled back": "2",
        "stopped": "<b>no gain & so on</b>",
    }
    assert reader.tags <= ALLOWED, "what was given was not escaped"
    assert Reader(History()._repr_html_()).table() == {
        "epochs": "0",
        "steps": "0",
        "seconds": "0.0",
    }


def test_a_sparkline_is_the_numbers() -> None:
    text = sparkline([3.0, math.nan, 1.0, 2.0, math.inf], width=42, height=22)
    (line,) = ET.fromstring(text)
    points = [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
    assert points == [(1.0, 1.0), (21.0, 21.0), (31.0, 11.0)]
    for values in ([], [math.nan], [2.0], [1.0, 1.0]):
        ET.fromstring(sparkline(values))


# Progress bars.


@pytest.mark.parametrize("shown", [True, False])
def test_a_pipe_or_file_gets_no_progress(shown: bool, capfd: pytest.CaptureFixture[str]) -> None:
    VMoNF(mixture()).fit(torch.randn(20, 2), epochs=2, progress=shown)
    assert capfd.readouterr() == ("", "")


class Terminal(io.StringIO):
    """What a person sees."""

    def isatty(self) -> bool:
        return True

    def last(self) -> str:
        """The last line that was drawn before the bar was taken away."""
        return [line for line in self.getvalue().split("\r") if line.strip()][-1]


FITS: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"epochs": 3}, "fit, epoch 3/3: 100%"),
    "steps": ({"steps": 12}, "fit: 100%"),
    "labelled": ({"epochs": 2, "pretrain_epochs": 2, "interleave": True}, "fit, epoch 2/2: 100%"),
}


@pytest.mark.parametrize("case", FITS)
def test_a_bar_has_total_rate_time_and_values(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, title = FITS[case]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    vmonf = VMoNF(mixture(), SoftmaxGuide(networks.MLP(2, 3)))
    y = torch.arange(40) % 4 - 1
    y = y if case == "labelled" else torch.full_like(y, -1)
    seen: list[str] = []

    def watch(_: Any) -> None:
        [bar] = tqdm.std.tqdm._instances
        bar.refresh()
        seen.append(terminal.last())

    history = vmonf.fit(
        torch.randn(40, 2), y, batch_size=10, held_out=0.25, seed=0, callbacks=watch, **options
    )
    total = history.step[-1]
    last = seen[-1]
    assert last.startswith(title)
    assert f"{total}/{total} [" in last, "the total is the number of steps that ran"
    assert re.search(r"\d\d:\d\d<\d\d:\d\d, .*(step/s|s/step)", last)
    for name, values in (("ELBO", history.elbo), ("held out", history.held_out)):
        assert f"{name}={values[-1]:.3f}" in last
    assert re.search(r"\r +\r$", terminal.getvalue()), "the bar is taken away"


def test_a_bar_has_the_steps_for_which_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    ticks = itertools.count(step=0.01)  # a clock that goes on at each look
    clock = SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr("pyro_vmonf.training.trainer.time", clock)
    totals: list[int] = []

    def watch(_: Any) -> None:
        [bar] = tqdm.std.tqdm._instances
        totals.append(bar.total)

    history = VMoNF(mixture()).fit(
        torch.randn(40, 2), batch_size=10, epochs=10_000, minutes=0.05, seed=0, callbacks=watch
    )
    assert history.stopped
    for total in totals[2:]:
        assert total == pytest.approx(history.step[-1], rel=0.3)


def test_seconds_have_a_bar_too(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    stages = Stages(60.0, True, "from_data")
    stages.enter("fit")
    stages.show({"objective": "-1.0"})
    assert re.search(r"from_data, fit:\s+0%.* 0 of at most 60 s, objective=-1.0", terminal.last())
    stages.close()


def test_from_data_names_its_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    VMoNF.from_data(torch.randn(60, 2), components=1, seed=0, minutes=0.01)
    for stage in ("start", "length of the fit", "fit"):
        assert f"from_data, {stage}: " in terminal.getvalue()


def test_events_go_to_the_logger(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", logger="pyro_vmonf"):
        VMoNF(mixture()).fit(torch.randn(20, 2), epochs=2, batch_size=10, progress=False, seed=0)
    levels = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in levels] == ["INFO", "DEBUG", "DEBUG", "INFO"]
    assert levels[0][1].endswith("; 4 steps in all")
    assert levels[1][1].startswith("fit, epoch 0: {'objective': '")
    assert "fit ended after epoch 2 of 2, 4 steps" in levels[-1][1]


NOTEBOOK = """
import sys, types
class Widget:
    def __init__(self, *_, children=(), **__):
        self.children, self.layout, self.style = children, types.SimpleNamespace(), self
        self.bar_style = ""
class Shell: pass
Shell.__module__ = "ipykernel.zmqshell"
displayed = []
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
ipython = sys.modules["IPython"] = types.ModuleType("IPython")
ipython.get_ipython = Shell
display = sys.modules["IPython.display"] = types.ModuleType("IPython.display")
display.display = displayed.append
widgets = types.ModuleType("ipywidgets")
widgets.HTML = widgets.FloatProgress = widgets.HBox = Widget
sys.modules["ipywidgets"] = widgets if WITH else None
"""
BAR = """
import runpy
bar = runpy.run_path(PATH)["progress_bar"](3, ENABLED, "fit")
bar.update(1)
bar.close()
print(type(bar).__mro__[1].__module__, len(displayed) if "displayed" in globals() else 0)
"""


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("place", ["pipe", "bare notebook", "notebook"])
def test_bars_without_a_warning(place: str, enabled: bool) -> None:
    """In notebooks a widget; where ipywidgets is missing, a line of text and no complaint."""
    path = Path(inspect.getfile(progress_bar))
    setting = "" if place == "pipe" else NOTEBOOK.replace("WITH", str(place == "notebook"))
    code = setting + BAR.replace("PATH", repr(str(path))).replace("ENABLED", str(enabled))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    module, displayed = done.stdout.split()
    assert module == ("tqdm.notebook" if place == "notebook" else "tqdm.std")
    assert int(displayed) == (enabled and place == "notebook")
    assert bool(done.stderr) == (enabled and place == "bare notebook")
