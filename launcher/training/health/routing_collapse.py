"""Tells experts that are no longer used from experts that some layers favour.

Routing has collapsed when over the last rows one expert took nearly all choices, or some took nearly none. Where layers
share experts, their choices count together: that each of them has an expert of its own is what sharing is for.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from launcher.tracking import expert_loads

ROWS = 20
# An expert's share of all choices: above MAX_SHARE routing has collapsed, and it has recovered once all are below
# RECOVERED_MAX_SHARE. The gap between the two keeps a load at the limit from being reported again and again.
MAX_SHARE = 0.9
RECOVERED_MAX_SHARE = 0.8
# An expert's load relative to an even one (its share times the number of experts), with the same kind of gap.
MIN_LOAD = 0.05
RECOVERED_MIN_LOAD = 0.1


class CollapseDetector:
    """Follows the loads of all experts; rows of an earlier start may be handed in, and are not reported again.

    `users` names, by layer, what the layers that share its experts are called together; a layer without a name there
    has experts of its own.
    """

    def __init__(self, rows: Iterable[dict[str, Any]] = (), users: Mapping[str, str] | None = None) -> None:
        self._users = users or {}
        self._recent: dict[str, deque[list[float]]] = {}
        self._collapsed: set[str] = set()
        for row in rows:
            self.check(row)

    def check(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """Return what changed with a row: `event` routing_collapsed or routing_recovered, `layer`, `reason`, `load`."""
        shares: dict[str, list[list[float]]] = defaultdict(list)
        for layer, share in expert_loads(row):
            shares[self._users.get(layer, layer)].append(share)
        changes = []
        for layer, shares_LE in shares.items():
            recent = self._recent.setdefault(layer, deque(maxlen=ROWS))
            # Every layer makes as many choices as the others.
            recent.append(np.mean(shares_LE, axis=0).tolist())
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
