"""Tells a layer whose router has stopped using its experts from one that favours some.

A layer has collapsed when over the last rows one expert took nearly all choices, or some took nearly none.
"""

from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

from launcher.tracking import expert_loads

ROWS = 20
# An expert's share of all choices: above MAX_SHARE the layer has collapsed, and it has recovered once all are below
# RECOVERED_MAX_SHARE. The gap between the two keeps a layer at the limit from being reported again and again.
MAX_SHARE = 0.9
RECOVERED_MAX_SHARE = 0.8
# An expert's load relative to an even one (its share times the number of experts), with the same kind of gap.
MIN_LOAD = 0.05
RECOVERED_MIN_LOAD = 0.1


class CollapseDetector:
    """Follows the loads of every layer; rows of an earlier start may be handed in, and are not reported again."""

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self._recent: dict[str, deque[list[float]]] = {}
        self._collapsed: set[str] = set()
        for row in rows:
            self.check(row)

    def check(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what changed with a row: `event` routing_collapsed or routing_recovered, `layer`, `reason`, `load`."""
        changes = []
        for layer, share in expert_loads(row):
            recent = self._recent.setdefault(layer, deque(maxlen=ROWS))
            recent.append(share)
            if len(recent) == ROWS:
                change = self._change(layer, np.mean(recent, axis=0))
                if change is not None:
                    changes.append(change)
        return changes

    def _change(self, layer: str, share_E: np.ndarray) -> dict[str, Any] | None:
        was_collapsed = layer in self._collapsed
        min_load = MIN_LOAD
        max_share = MAX_SHARE
        if was_collapsed:
            min_load = RECOVERED_MIN_LOAD
            max_share = RECOVERED_MAX_SHARE

        load_E = share_E * len(share_E)
        idle = np.flatnonzero(load_E < min_load).tolist()
        one_takes_all = bool(share_E.max() > max_share)
        is_collapsed = bool(idle) or one_takes_all
        if is_collapsed == was_collapsed:
            return None

        loads = [round(float(load), 4) for load in load_E]
        details = {"layer": layer, "load": loads}
        if not is_collapsed:
            self._collapsed.remove(layer)
            return {"event": "routing_recovered", **details}

        self._collapsed.add(layer)
        if one_takes_all:
            reason = f"expert {share_E.argmax()} takes {share_E.max():.0%} of the choices"
        else:
            reason = f"experts {', '.join(map(str, idle))} take less than {MIN_LOAD:.0%} of an even share"
        return {"event": "routing_collapsed", **details, "reason": f"{reason} over {ROWS} rows"}
