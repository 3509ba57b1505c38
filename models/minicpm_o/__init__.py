"""MiniCPM-o 2.6 (https://github.com/OpenBMB/MiniCPM-o, Apache-2.0 code): 8 B parameters that hear, think and speak.

`from models.minicpm_o import MiniCPMO` is the door for Python; torch is imported when it is used, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.minicpm_o.door import MiniCPMO

__all__ = ["MiniCPMO"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from models.minicpm_o import door

    return getattr(door, name)
