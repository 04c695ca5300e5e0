"""Figures of data, fitted mixtures and training runs, those of the thesis among them.

Each function draws on ``ax`` and returns it; without ``ax`` it opens a figure. No function shows a
figure or changes the settings of matplotlib. A component has the same colour in all figures. Text
has 10 points in a figure of the width of a page (6.4 inches), and more in a wider one.
:func:`style` opens figures of your own in the same style; :func:`settings` has it for a whole
notebook.
"""

from pyro_vmonf.plots.components import plot_components
from pyro_vmonf.plots.density import plot_component_contours, plot_density
from pyro_vmonf.plots.images import plot_component_grid
from pyro_vmonf.plots.overview import plot_fit
from pyro_vmonf.plots.plane import (
    plot_clusters,
    plot_data,
    plot_regions,
    plot_responsibilities,
    plot_samples,
)
from pyro_vmonf.plots.plate import plot_plate
from pyro_vmonf.plots.report import plot_overlap, plot_report
from pyro_vmonf.plots.scores import plot_contingency, plot_roc
from pyro_vmonf.plots.style import settings, style
from pyro_vmonf.plots.training import plot_history, plot_terms
from pyro_vmonf.plots.transforms import plot_transform_grid, plot_transform_samples
from pyro_vmonf.plots.uncertainty import plot_memberships, plot_uncertainty

__all__ = [
    "plot_clusters",
    "plot_component_contours",
    "plot_component_grid",
    "plot_components",
    "plot_contingency",
    "plot_data",
    "plot_density",
    "plot_fit",
    "plot_history",
    "plot_memberships",
    "plot_overlap",
    "plot_plate",
    "plot_regions",
    "plot_report",
    "plot_responsibilities",
    "plot_roc",
    "plot_samples",
    "plot_terms",
    "plot_transform_grid",
    "plot_transform_samples",
    "plot_uncertainty",
    "settings",
    "style",
]
