"""The experiments of the paper and the thesis."""

from pyro_vmonf.experiments.data import EXPERIMENTS, Experiment

__all__ = ["EXPERIMENTS", "Experiment"]
