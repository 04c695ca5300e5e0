"""The pairs of model and guide: of rows, of sequences, and the one that a table chooses."""

from pyro_vmonf.vmonf.chain import MarkovVMoNF
from pyro_vmonf.vmonf.pair import VMoNF

__all__ = ["MarkovVMoNF", "VMoNF"]
