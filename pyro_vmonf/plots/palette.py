"""The colours of components, the same in every figure."""

from __future__ import annotations

from matplotlib.colors import to_rgb

Color = tuple[float, float, float]

# Any two colours are at least 17 apart in CIELAB, for normal sight and for simulated protanopia,
# deuteranopia and tritanopia (Machado, Oliveira, Fernandes 2009).
PALETTE = (
    *("#332288", "#EE3377", "#228833", "#66CCEE", "#DDAA33"),
    *("#3F90DA", "#661100", "#AA4499", "#B9AC70", "#BD1F01"),
)
UNLABELLED = "#8A8A8A"


def component_colors(count: int) -> list[Color]:
    """Return the colours of ``count`` components.

    The first ten are distinct for colour-blind readers too. The next ten are paler versions of
    them. Colours repeat from the twenty-first on.

    Example:
        >>> len(component_colors(12)), component_colors(12)[:10] == component_colors(10)
        (12, True)
    """
    dark = [to_rgb(name) for name in PALETTE]
    colors = dark + [tint(color, 0.55) for color in dark]
    return [colors[k % len(colors)] for k in range(count)]


def tint(color: Color, share: float = 0.25) -> Color:
    """Return a colour mixed with white: a background for dots of the same colour.

    Example:
        >>> tint((1.0, 0.0, 0.5), 0.5)
        (1.0, 0.5, 0.75)
    """
    red, green, blue = (1 - share * (1 - part) for part in color)
    return red, green, blue
