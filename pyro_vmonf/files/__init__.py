"""Files that hold a pair: a description of its parts, and their state; never any code.

A file is written whole or not at all. Reading one runs nothing that is in it.
"""

from pyro_vmonf.files.archive import FORMAT, check_writable, read, write
from pyro_vmonf.files.description import DISTRIBUTIONS, ROOMS, build, describe, parts
from pyro_vmonf.files.saved import KIND, load, save
from pyro_vmonf.files.settings import difference, settings_of

__all__ = [
    "DISTRIBUTIONS",
    "FORMAT",
    "KIND",
    "ROOMS",
    "build",
    "check_writable",
    "describe",
    "difference",
    "load",
    "parts",
    "read",
    "save",
    "settings_of",
    "write",
]
