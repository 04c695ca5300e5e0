"""Parts that several modules use, which none of them may put in another order."""

from __future__ import annotations

import gc
from typing import Any
from weakref import WeakSet

from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

_users: Any = WeakIdKeyDictionary()  # part: the modules that share it


def share(part: nn.Module, *users: nn.Module) -> None:
    """Write down that modules share a part. A copy of one shares nothing.

    Example:
        >>> part, one, other = nn.Linear(1, 1), nn.Identity(), nn.Identity()
        >>> share(part, one, other)
        >>> is_shared(part)
        True
        >>> del other
        >>> is_shared(part)
        False
    """
    _users.setdefault(part, WeakSet()).update(users)


def is_shared(part: nn.Module) -> bool:
    """Return whether more than one living module shares a part."""
    if len(_users.get(part, ())) > 1:
        gc.collect()  # modules that nobody has any more
    return len(_users.get(part, ())) > 1
