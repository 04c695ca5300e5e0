"""Networks with a batch of parameters: dense, masked, convolutional."""

from pyro_vmonf.nn.mlp import (
    MLP,
    Activation,
    ConvEncoder,
    Linear,
    activation_named,
    linear,
    linear_of_columns,
    start_near_zero,
    to_columns,
)
from pyro_vmonf.nn.picked import Picked
from pyro_vmonf.nn.started import Remembered, StartedNetwork

__all__ = [
    "MLP",
    "Activation",
    "ConvEncoder",
    "Linear",
    "Picked",
    "Remembered",
    "StartedNetwork",
    "activation_named",
    "linear",
    "linear_of_columns",
    "start_near_zero",
    "to_columns",
]
