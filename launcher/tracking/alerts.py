"""Which events of a run are worth an alert, and in which words."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from launcher.tracking.backend import Alert

MOST_UTTERANCES = 5

Event = dict[str, Any]

_ALERTS: dict[str, tuple[str, str, Literal["WARN", "ERROR"]]] = {
    "restart": ("{stage} was restarted", "Restart {restart}, from step {from_step}. {reason}", "WARN"),
    "loss_spike": ("The loss of {stage} jumped", "Step {step}: {loss:.3g}, usual was {usual:.3g}.", "WARN"),
    "update_skipped": ("{stage} skipped an update", "Step {step}: {reason}: {utterances}.", "WARN"),
    "rolled_back": ("The weights of {stage} were rolled back", "Step {step}: to those of step {to_step}.", "ERROR"),
    "routing_collapsed": ("Routing in {stage} collapsed", "Layer {layer} at step {step}: {reason}.", "WARN"),
}


def alert_of(event: Event) -> Alert | None:
    """The alert about an event; None when it is not worth one."""
    if event["event"] not in _ALERTS:
        return None
    title, text, level = _ALERTS[event["event"]]
    words = {**event, "utterances": _some(event.get("utterances", []))}
    return Alert(title.format(**words), text.format(**words), level)


def _some(utterances: list[str]) -> str:
    more = len(utterances) - MOST_UTTERANCES
    return ", ".join(utterances[:MOST_UTTERANCES]) + (f" and {more} more" if more > 0 else "")


def unreported_restarts(events: Iterable[Event], stage: str) -> Iterator[Event]:
    """Restarts of a stage since it last trained, each with the reason: the launcher, which restarts, tells nobody."""
    restarts: list[Event] = []
    reason = "Its processes were lost."
    for event in events:
        if event.get("stage") != stage:
            continue
        if event["event"] == "training_started":
            restarts = []
        elif event["event"] == "process_lost":
            reason = f"{event['reason'].rstrip('.')}."
        elif event["event"] == "restart":
            restarts.append({**event, "reason": reason})
    return iter(restarts)
