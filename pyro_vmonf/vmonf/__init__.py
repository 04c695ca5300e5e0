"""VMoNF, the pair of model and guide, and the pair that a table chooses."""

from pyro_vmonf.vmonf.pair import VMoNF

__all__ = ["VMoNF"]
