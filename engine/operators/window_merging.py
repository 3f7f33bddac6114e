"""Which windows of a key are open when windows grow together, and under which of them their contents are kept.

Contents stay where the first of the merged windows put them (its *state window*), so that a session that grows by each
element does not move what it holds. Source: Flink's MergingWindowSet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

from engine.time.assigners import MergingWindowAssigner

__all__ = ["MergeHandler", "MergingWindows"]

#: (result, merged windows, state window of the result, state windows whose contents move there)
MergeHandler = Callable[[Any, list[Any], Any, list[Any]], None]


@final
class _Groups(MergingWindowAssigner.MergeCallback):
    def __init__(self) -> None:
        self.found: list[tuple[Any, set[Any]]] = []

    def merge(self, to_be_merged: Iterable[Any], merge_result: Any) -> None:
        self.found.append((merge_result, set(to_be_merged)))


@final
class MergingWindows:
    """The open windows of one key. ``state_windows``: window → state window; a copy that the caller stores again if
    ``is_changed``."""

    def __init__(self, assigner: MergingWindowAssigner, state_windows: dict[Any, Any] | None) -> None:
        self._assigner = assigner
        self.state_windows: dict[Any, Any] = dict(state_windows or ())
        self.is_changed = False

    def add(self, window: Any, on_merge: MergeHandler) -> Any:
        """Take up a window of a new element; return the window that it is part of now."""
        mapping = self.state_windows
        if window in mapping:
            return window
        self.is_changed = True
        groups = _Groups()
        self._assigner.merge_windows([*mapping, window], groups)
        actual, found = window, False
        for result, members in groups.found:
            if window in members:
                actual, found = result, True
            self._merge(result, [known for known in mapping if known in members], on_merge)
        if not found:
            mapping[window] = window
        return actual

    def _merge(self, result: Any, merged: list[Any], on_merge: MergeHandler) -> None:
        if not merged:
            self.state_windows[result] = result
            return
        state_windows = [self.state_windows.pop(window) for window in merged]
        self.state_windows[result] = state_windows[0]
        if merged != [result]:
            on_merge(result, merged, state_windows[0], state_windows[1:])

    def retire(self, window: Any) -> None:
        """The window is gone."""
        if self.state_windows.pop(window, None) is not None:
            self.is_changed = True
