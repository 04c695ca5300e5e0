"""Names, plates and traces of Pyro programs, and their entries in the param store.

No other folder touches names of Pyro that begin with an underscore.
"""

from pyro_vmonf.program.foreign import (
    FunctionProgram,
    accepted,
    autoguides,
    check_autoguide,
    check_member,
    drawn_sites,
    explained,
    give_models_,
    models_of,
    name_in_words,
    reset_autoguide_,
)
from pyro_vmonf.program.modules import Conditioned, Program, Transparent, detached_, name_of
from pyro_vmonf.program.overridden import check_follows, follows, running
from pyro_vmonf.program.rows import (
    Rows,
    data_plate,
    enclosing,
    free_dim,
    in_plate,
    log_evidence,
    posterior_of_joint,
    with_evidence,
)
from pyro_vmonf.program.store import (
    Registered,
    declares,
    name_foreign_,
    register,
    registered,
    unregistered,
)
from pyro_vmonf.program.traces import (
    Enumerate,
    contracted,
    enumerated_dim,
    is_enumerated,
    is_plate,
    total_of,
)

__all__ = [
    "Conditioned",
    "Enumerate",
    "FunctionProgram",
    "Program",
    "Registered",
    "Rows",
    "Transparent",
    "accepted",
    "autoguides",
    "check_autoguide",
    "check_follows",
    "check_member",
    "contracted",
    "data_plate",
    "declares",
    "detached_",
    "drawn_sites",
    "enclosing",
    "enumerated_dim",
    "explained",
    "follows",
    "free_dim",
    "give_models_",
    "in_plate",
    "is_enumerated",
    "is_plate",
    "log_evidence",
    "models_of",
    "name_foreign_",
    "name_in_words",
    "name_of",
    "posterior_of_joint",
    "register",
    "registered",
    "reset_autoguide_",
    "running",
    "total_of",
    "unregistered",
    "with_evidence",
]
