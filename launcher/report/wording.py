"""Numbers, durations and word differences as a reader wants them."""

import re
from dataclasses import dataclass
from typing import Literal

import jiwer

MISSING = "–"
_CHINESE_OR_JAPANESE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


def count(value: float | None) -> str:
    """A number of parameters or utterances in three digits: 812, 41.3 k, 1.24 M."""
    if value is None:
        return MISSING
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= limit * 0.9995:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


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


@dataclass(frozen=True)
class Piece:
    """Consecutive words of a hypothesis that are right, missing (only in the reference) or added."""

    kind: Literal["same", "missing", "added"]
    text: str


def differences(reference: str, hypothesis: str) -> tuple[list[Piece], int, int]:
    """Aligns two texts; returns the pieces, the number of errors and the number of units of the reference.

    The unit is the word, or the character in Chinese and Japanese.
    """
    joint = "" if _CHINESE_OR_JAPANESE.search(reference + hypothesis) else " "
    wanted, heard = (_units(text, joint) for text in (reference, hypothesis))
    if not wanted or not heard:
        pieces = [Piece("missing", joint.join(wanted))] if wanted else []
        pieces += [Piece("added", joint.join(heard))] if heard else []
        return pieces, len(wanted) + len(heard), len(wanted)
    aligned = jiwer.process_words(" ".join(wanted), " ".join(heard))
    pieces = []
    for chunk in aligned.alignments[0]:
        missed = joint.join(wanted[chunk.ref_start_idx : chunk.ref_end_idx])
        found = joint.join(heard[chunk.hyp_start_idx : chunk.hyp_end_idx])
        if chunk.type == "equal":
            pieces.append(Piece("same", found))
            continue
        pieces += [Piece("missing", missed)] if missed else []
        pieces += [Piece("added", found)] if found else []
    return pieces, aligned.substitutions + aligned.deletions + aligned.insertions, len(wanted)


def _units(text: str, joint: str) -> list[str]:
    return text.split() if joint else [character for character in text if not character.isspace()]
