"""A fit of a table as a page of HTML that stands alone: its pictures are inside."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable, Sequence
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vmonf._utils.contexts import own_filters
from pyro_vmonf._utils.progress import parts
from pyro_vmonf._version import __version__
from pyro_vmonf.interop.tables import Table
from pyro_vmonf.plots import plot_history
from pyro_vmonf.plots.overview import plot_fit
from pyro_vmonf.plots.palette import component_colors
from pyro_vmonf.plots.style import PAGE, style
from pyro_vmonf.plots.uncertainty import plot_uncertainty
from pyro_vmonf.vmonf import VMoNF

MOST_COLUMNS = 8  # of the table of means
MOST_CLUSTERS = 30

CSS = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6575; --line: #dfe3ea; --page: #fff;
  --card: #f6f7f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #333b48;
  --page: #14181f; --card: #1d232d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 3rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; }
p { max-width: 44rem; margin: .5rem 0; overflow-wrap: anywhere; }
.soft, small { color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0; }
dl div { background: var(--card); border-radius: .5rem; padding: .75rem 1rem; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; background: #fff; border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem; }
figure, .scroll { overflow-x: auto; }
figure img { display: block; width: 100%; min-width: 32rem; max-width: 46rem; height: auto;
  margin: 0 auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .35rem .75rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; }
tbody th { text-align: left; padding-left: 0; white-space: normal; overflow-wrap: anywhere;
  min-width: 8rem; max-width: 16rem; }
thead th { color: var(--ink); }
.dot { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%;
  margin-right: .5rem; }
pre { background: var(--card); border-radius: .5rem; padding: .75rem 1rem; overflow-x: auto;
  font-size: .88rem; }
ul { padding-left: 1.2rem; } li { overflow-wrap: anywhere; }
"""


def page(
    vmonf: VMoNF, table: Table, title: str, notes: Sequence[str] = (), progress: bool = True
) -> str:
    """Return the page of a pair and the rows that it was fitted on, or other rows.

    Arguments:
        vmonf: the pair.
        table: the rows.
        title: the name of the table. It and all names of columns are escaped.
        notes: sentences of the fit, such as its warnings.
        progress: show a bar in a terminal.
    """
    rows = table.frame
    with parts(["numbers", "the fit", "certainty"], "report", progress) as done:
        q, log_prob = vmonf.predict_proba(rows), vmonf.log_prob(rows)
        clusters = vmonf.predict(rows)
        done()
        fitted = _picture(lambda ax: plot_fit(vmonf, rows, ax=ax), _height(vmonf), "the fit")
        done()
        sure = _picture(lambda ax: plot_uncertainty(vmonf, rows, ax=ax), 0.5, "probabilities")
        done()
    pieces = [
        f"<h1>Clusters of {escape(title)}</h1>",
        f'<p class="soft">A variational mixture of normalizing flows, pyro_vmonf {__version__}</p>',
        _numbers(vmonf, table, q, log_prob),
        _notes([*table.said, *notes]),
        "<h2>The fit</h2>",
        f"<p>{_words(vmonf)}</p>",
        fitted,
        "<h2>The clusters</h2>",
        "<p>Means of the rows of each cluster. The probability is the mean of the guide's "
        "probability that a row belongs to its cluster.</p>",
        _clusters(table, q, clusters),
        "<h2>Certainty</h2>",
        "<p>The curve is the share of the rows whose cluster has at most a probability. "
        "A curve along the floor that rises at 1 means that no row is in doubt.</p>",
        sure,
        _choice(vmonf),
        _use(vmonf),
    ]
    body = "\n".join(piece for piece in pieces if piece)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Clusters of {escape(title)}</title><style>{CSS}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _height(vmonf: VMoNF) -> float:
    """Return the height of the first picture, as a share of its width."""
    return 0.9 if vmonf.model.event_shape[0] > 2 else 0.66


def _picture(draw: Callable[[Axes], Any], height: float, name: str) -> str:
    """Return a picture inside the page."""
    with style():
        figure = Figure(figsize=(PAGE, height * PAGE), layout="constrained")
        draw(figure.subplots())
        file = BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(file, format="png", dpi=160)
    code = base64.b64encode(file.getvalue()).decode()
    return f'<figure><img src="data:image/png;base64,{code}" alt="{escape(name)}"></figure>'


def _numbers(vmonf: VMoNF, table: Table, q: Tensor, log_prob: Tensor) -> str:
    """Return the first numbers of the page."""
    choice = {} if vmonf.history is None else vmonf.history.choice
    shown = {
        "rows": f"{len(table.frame):,}",
        "columns": str(vmonf.model.event_shape[0]),
        "clusters": str(vmonf.model.num_components),
        "mean probability of the cluster": f"{float(q.amax(-1).mean()):.3f}",
        "log-density of these rows, nats a row": f"{float(log_prob.double().mean()):.3f}",
    }
    if "held_out" in choice:
        shown["log-density of held-out rows"] = f"{choice['held_out']:.3f}"
        shown["a Gaussian mixture, held out"] = f"{choice['held_out_gaussians']:.3f}"
    cells = (f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in shown.items())
    return f"<dl>{''.join(cells)}</dl>"


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return "<h2>Notes</h2><ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"


def _words(vmonf: VMoNF) -> str:
    """Return the words beside the first picture."""
    width = vmonf.model.event_shape[0]
    if width == 1:
        return (
            "The bars are the rows. The black line is the density of the mixture, the coloured "
            "areas are those of its components."
        )
    if width == 2:
        return (
            "Each row has the colour of its cluster. The background is the cluster that the guide "
            "chooses at each place. A contour holds 90 % of the mass of its component."
        )
    return (
        "Below the diagonal: rows in the colour of their cluster, and an ellipse of two standard "
        "deviations around each cluster. Above it: the component with most of the mixture's mass "
        "at each place. The diagonal has the densities. At most five columns are drawn, those that "
        "part the clusters best."
    )


def _clusters(table: Table, q: Tensor, clusters: Tensor) -> str:
    """Return the table of the clusters."""
    names = [str(n) for n in getattr(table.frame, "columns", range(table.frame.shape[1]))]
    x = np.asarray(table.frame, dtype=np.float64)
    found = clusters.cpu().numpy()
    held, counts = np.unique(found[found >= 0], return_counts=True)
    with own_filters():  # of a cluster without a number in some column
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        spreads = [np.nan_to_num(np.nanvar(x[found == c], 0)) for c in held]
    within = sum(n / len(x) * s for n, s in zip(counts, spreads, strict=True))
    order = np.argsort(within / np.maximum(np.nanvar(x, 0), 1e-300), kind="stable")[:MOST_COLUMNS]
    columns = sorted(order.tolist())
    colors = component_colors(q.shape[1])
    largest = sorted(zip(held.tolist(), counts.tolist(), strict=True), key=lambda p: -p[1])
    shown = largest[:MOST_CLUSTERS]
    rows: dict[str, list[str]] = {
        "rows": [f"{count:,}" for _, count in shown],
        "share of the rows": [f"{count / len(x):.1%}" for _, count in shown],
        "probability": [f"{float(q[found == c].amax(-1).mean()):.3f}" for c, _ in shown],
    }
    for i in columns:
        rows[f"mean {names[i]}"] = [_mean(x[found == c, i]) for c, _ in shown]
    head = "".join(f"<th>{_dot(colors[c])}{escape(_name(table, c))}</th>" for c, _ in shown)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{v}</td>' for v in values)}</tr>"
        for name, values in rows.items()
    )
    more, left = len(largest) - len(shown), len(names) - len(columns)
    rest = f"<p>and {more} smaller clusters</p>" if more else ""
    if left:
        rest += f'<p class="soft">{left} further columns differ less between clusters.</p>'
    return (
        '<div class="scroll"><table><thead><tr><th></th>'
        f"{head}</tr></thead><tbody>{body}</tbody></table></div>{rest}"
    )


def _mean(values: np.ndarray[Any, Any]) -> str:
    """Return the mean of the numbers that are there."""
    there = values[~np.isnan(values)]
    return f"{there.mean():.4g}" if len(there) else "–"


def _dot(color: tuple[float, float, float]) -> str:
    red, green, blue = (round(255 * part) for part in color)
    return f'<span class="dot" style="background: rgb({red},{green},{blue})"></span>'


def _name(table: Table, cluster: int) -> str:
    """Return the name of a cluster: its number, and its label where there is one."""
    known = cluster < len(table.names)
    return f"{cluster} {table.names[cluster]}" if known else str(cluster)


def _choice(vmonf: VMoNF) -> str:
    """Return what was chosen, and the curve of the training."""
    history = vmonf.history
    if history is None:
        return ""
    parts = ["<h2>The course of the fit</h2>"]
    if "components" in history.choice:
        lines = str(vmonf.report()).splitlines()
        parts.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>")
    if history.stopped:
        parts.append(f"<p>The training stopped before its end: {escape(history.stopped)}.</p>")
    if len(history.epoch) > 1:
        parts.append(_picture(lambda ax: plot_history(history, ax=ax), 0.5, "the training"))
    return "\n".join(parts)


def _use(vmonf: VMoNF) -> str:
    """Return the lines that load the pair."""
    return (
        "<h2>Go on from here</h2><pre>from pyro_vmonf import VMoNF\n\n"
        'vmonf = VMoNF.load("model.pt")\n'
        "vmonf.predict(x)    # clusters\n"
        "vmonf.log_prob(x)   # log-densities\n"
        "vmonf.sample(1000)  # new points</pre>"
    )
