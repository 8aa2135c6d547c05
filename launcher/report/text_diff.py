"""What a hypothesis has right, what it misses and what it adds, in words."""

import re
from dataclasses import dataclass
from typing import Literal

import jiwer

from launcher.inference.error_counts import count_errors

_CHINESE_OR_JAPANESE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")


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
    errors, units = count_errors(aligned)
    return pieces, errors, units


def _units(text: str, joint: str) -> list[str]:
    return text.split() if joint else [character for character in text if not character.isspace()]
