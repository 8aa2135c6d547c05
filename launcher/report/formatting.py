"""Numbers and durations as a reader wants them."""

MISSING = "–"


def count(value: float | None) -> str:
    """A number of parameters or utterances in three digits: 812, 41.3 k, 1.24 M."""
    if value is None:
        return MISSING
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit * 0.9995:
            scaled = value / limit
            return f"{scaled:.{2 if scaled < 9.995 else 1 if scaled < 99.95 else 0}f}{unit}"
    return f"{value:.0f}"


def giga(operations: float | None) -> str:
    """Operations (per second of audio) in 10^9 of them, in three digits: 0.087, 12.4."""
    return MISSING if operations is None else f"{operations / 1e9:#.3g}"


def percent(share: float | None, digits: int = 1) -> str:
    return MISSING if share is None else f"{100 * share:.{digits}f}%"


def decimal(value: float | None) -> str:
    """A loss, norm or rate in three significant digits."""
    if value is None:
        return MISSING
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def duration(seconds: float) -> str:
    """A duration in its two largest units: 41 s, 12 min 5 s, 3 h 20 min, 2 d 4 h."""
    whole_s = round(seconds)
    for size_s, unit, smaller_s, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole_s >= size_s:
            rest = whole_s % size_s // smaller_s
            return f"{whole_s // size_s} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{seconds:.1f} s" if seconds < 10 else f"{whole_s} s"
