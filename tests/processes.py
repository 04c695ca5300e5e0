"""Processes that begin at once: a server imports the library a single time, and forks for each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
# An optimiser imports the compiler.
CONTEXT.set_forkserver_preload(["pyro_vmonf", "torch._dynamo"])


def start(function: Callable[..., Any], *arguments: Any) -> BaseProcess:
    """Begin to call a function of a module in a process of its own."""
    process = CONTEXT.Process(target=_alone, args=(function, *arguments))
    process.start()
    return process


def _alone(function: Callable[..., Any], *arguments: Any) -> None:
    import torch

    torch.set_num_threads(1)
    function(*arguments)
