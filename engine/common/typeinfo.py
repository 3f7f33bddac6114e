"""Types, where a PyFlink program looks for it."""

from engine.core.type_info import *  # noqa: F403
from engine.core.type_info import __all__ as _names

__all__ = [*_names]
