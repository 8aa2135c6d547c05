"""Numbers and durations as a reader wants them."""

import math

MISSING = "–"
MINUTE_S = 60
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S
_SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def count(value: float | None) -> str:
    """A number of parameters or utterances in three digits: 812, 41.3 k, 1.24 M."""
    if value is None:
        return MISSING
    for scale, prefix in _SCALES:
        scaled = value / scale
        # Each limit is where three digits round up: 999,900 is 1.00 M and not 1000 k.
        if scaled < 0.9995:
            continue
        if scaled < 9.995:
            return f"{scaled:.2f} {prefix}"
        if scaled < 99.95:
            return f"{scaled:.1f} {prefix}"
        return f"{scaled:.0f} {prefix}"
    return f"{value:.0f}"


def giga(operations: float | None) -> str:
    """Operations (per second of audio) in 10^9 of them, in three digits: 0.087, 12.4."""
    if operations is None:
        return MISSING
    return f"{operations / 1e9:#.3g}"


def percent(share: float | None, digits: int = 1) -> str:
    """A fraction in percent: 8.3%."""
    if share is None:
        return MISSING
    return f"{100 * share:.{digits}f}%"


def decimal(value: float | None) -> str:
    """A loss, norm or rate in three significant digits."""
    if value is None:
        return MISSING
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """A duration in its two largest units: 4.2 s, 41 s, 12 min 5 s, 3 h 20 min, 2 d 4 h; "?" where it is not known."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    whole_s = round(seconds)
    if whole_s >= DAY_S:
        return _two_units(whole_s // DAY_S, "d", whole_s % DAY_S // HOUR_S, "h")
    if whole_s >= HOUR_S:
        return _two_units(whole_s // HOUR_S, "h", whole_s % HOUR_S // MINUTE_S, "min")
    if whole_s >= MINUTE_S:
        return _two_units(whole_s // MINUTE_S, "min", whole_s % MINUTE_S, "s")
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{whole_s} s"


def _two_units(larger: int, larger_unit: str, smaller: int, smaller_unit: str) -> str:
    if smaller == 0:
        return f"{larger} {larger_unit}"
    return f"{larger} {larger_unit} {smaller} {smaller_unit}"
