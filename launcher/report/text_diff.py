"""What a hypothesis has right, what it misses and what it adds, in words."""

import re
from dataclasses import dataclass
from typing import Literal

import jiwer

from launcher.inference.error_counts import count_errors

# Kana, and the CJK ideographs with extension A. Korean puts spaces between words and is compared by word.
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
    reference_units = reference.split()
    hypothesis_units = hypothesis.split()
    separator = " "
    if _CHINESE_OR_JAPANESE.search(reference + hypothesis):
        reference_units = list("".join(reference_units))
        hypothesis_units = list("".join(hypothesis_units))
        separator = ""

    # jiwer 4 refuses an empty reference.
    if not reference_units:
        pieces = []
        if hypothesis_units:
            pieces.append(Piece("added", separator.join(hypothesis_units)))
        return pieces, len(hypothesis_units), 0

    # jiwer's character alignment would count spaces, so characters are aligned as words of one letter.
    aligned = jiwer.process_words(" ".join(reference_units), " ".join(hypothesis_units))
    pieces = []
    for chunk in aligned.alignments[0]:
        reference_text = separator.join(reference_units[chunk.ref_start_idx : chunk.ref_end_idx])
        hypothesis_text = separator.join(hypothesis_units[chunk.hyp_start_idx : chunk.hyp_end_idx])
        if chunk.type == "equal":
            pieces.append(Piece("same", hypothesis_text))
            continue
        # A substitution has both texts, a deletion the reference's alone, an insertion the hypothesis's alone.
        if reference_text:
            pieces.append(Piece("missing", reference_text))
        if hypothesis_text:
            pieces.append(Piece("added", hypothesis_text))
    num_errors, num_units = count_errors(aligned)
    return pieces, num_errors, num_units
