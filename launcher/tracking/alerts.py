"""Which events of a run are worth an alert, and in which words."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from launcher.tracking.backend import Alert

# An alert is read on a phone; a batch may have hundreds of utterances.
MAX_UTTERANCES = 5

Event = dict[str, Any]

# Title, text and level by event; braces are keys of the event.
_ALERTS: dict[str, tuple[str, str, Literal["WARN", "ERROR"]]] = {
    "restart": ("{stage} was restarted", "Restart {restart}, from step {from_step}. {reason}", "WARN"),
    "loss_spike": ("The loss of {stage} jumped", "Step {step}: {loss:.3g}, usual was {usual:.3g}.", "WARN"),
    "update_skipped": ("{stage} skipped an update", "Step {step}: {reason}: {utterances}.", "WARN"),
    "rolled_back": ("The weights of {stage} were rolled back", "Step {step}: to those of step {to_step}.", "ERROR"),
    "routing_collapsed": ("Routing in {stage} collapsed", "{layer} at step {step}: {reason}.", "WARN"),
}


def make_alert(event: Event) -> Alert | None:
    """The alert about an event; None when it is not worth one."""
    if event["event"] not in _ALERTS:
        return None
    title, text, level = _ALERTS[event["event"]]
    utterances = event.get("utterances", [])
    listing = ", ".join(utterances[:MAX_UTTERANCES])
    num_more = len(utterances) - MAX_UTTERANCES
    if num_more > 0:
        listing += f" and {num_more} more"
    values = {**event, "utterances": listing}
    return Alert(title.format(**values), text.format(**values), level)


def unreported_restarts(events: Iterable[Event], stage: str) -> Iterator[Event]:
    """Restarts of a stage since it last trained, each with the reason.

    The launcher restarts processes and has no tracker, so the next attempt reports them.
    """
    restarts: list[Event] = []
    reason = "Its processes were lost."
    for event in events:
        if event.get("stage") != stage:
            continue
        # An attempt that trained has reported what came before it.
        if event["event"] == "training_started":
            restarts = []
        elif event["event"] == "process_lost":
            reason = f"{event['reason'].rstrip('.')}."
        elif event["event"] == "restart":
            restarts.append({**event, "reason": reason})
    return iter(restarts)
