"""Names, plates and traces of Pyro programs, and their entries in the param store.

No other folder touches names of Pyro that begin with an underscore.
"""

from pyro_vmonf.program.modules import Program, Transparent, detached_, name_of
from pyro_vmonf.program.overridden import check_follows, follows, running
from pyro_vmonf.program.rows import (
    Rows,
    data_plate,
    free_dim,
    in_plate,
    log_evidence,
    with_evidence,
)
from pyro_vmonf.program.store import Registered, declares, register, unregistered
from pyro_vmonf.program.traces import (
    Enumerate,
    contracted,
    enumerated_dim,
    is_enumerated,
    is_plate,
)

__all__ = [
    "Enumerate",
    "Program",
    "Registered",
    "Rows",
    "Transparent",
    "check_follows",
    "contracted",
    "data_plate",
    "declares",
    "detached_",
    "enumerated_dim",
    "follows",
    "free_dim",
    "in_plate",
    "is_enumerated",
    "is_plate",
    "log_evidence",
    "name_of",
    "register",
    "running",
    "unregistered",
    "with_evidence",
]
