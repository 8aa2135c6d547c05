"""Tells a layer whose router has stopped using its experts from one that favours some.

A layer has collapsed when over the last rows one expert took nearly all choices, or some took nearly none.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from launcher.tracking import expert_loads

ROWS = 20
# An expert's share of all choices, and its share times the number of experts; beyond the first the layer has
# collapsed, within the second it has recovered.
MOST_SHARE, RECOVERED_SHARE = 0.9, 0.8
LEAST_LOAD, RECOVERED_LOAD = 0.05, 0.1


class CollapseDetector:
    """Follows the loads of every layer; rows of an earlier start may be handed in, and are not reported again."""

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self._recent: dict[str, deque[list[float]]] = {}
        self._collapsed: set[str] = set()
        for row in rows:
            self.look(row)

    def look(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what changed with a row: `event` routing_collapsed or routing_recovered, `layer`, `reason`, `load`."""
        changes = []
        for layer, share in expert_loads(row):
            recent = self._recent.setdefault(layer, deque(maxlen=ROWS))
            recent.append(share)
            if len(recent) == ROWS:
                changes += self._change(layer, np.mean(recent, axis=0))
        return changes

    def _change(self, layer: str, share_E: np.ndarray) -> list[dict[str, Any]]:
        was = layer in self._collapsed
        load_E = share_E * len(share_E)
        idle = np.flatnonzero(load_E < (RECOVERED_LOAD if was else LEAST_LOAD)).tolist()
        alone = share_E.max() > (RECOVERED_SHARE if was else MOST_SHARE)
        is_collapsed = bool(idle) or bool(alone)
        if is_collapsed == was:
            return []
        details = {"layer": layer, "load": [round(float(load), 4) for load in load_E]}
        if not is_collapsed:
            self._collapsed.remove(layer)
            return [{"event": "routing_recovered", **details}]
        self._collapsed.add(layer)
        reason = f"expert {share_E.argmax()} takes {share_E.max():.0%} of the choices"
        if not alone:
            reason = f"experts {', '.join(map(str, idle))} take less than {LEAST_LOAD:.0%} of an even share"
        return [{"event": "routing_collapsed", **details, "reason": f"{reason} over {ROWS} rows"}]
