"""Errors and reference length of jiwer's alignments."""

import jiwer


def count_errors(aligned: jiwer.WordOutput | jiwer.CharacterOutput) -> tuple[int, int]:
    """The errors (substitutions, deletions, insertions) and the words or characters of the references."""
    errors = aligned.substitutions + aligned.deletions + aligned.insertions
    # Inserted words stand in the hypothesis alone.
    length = aligned.hits + aligned.substitutions + aligned.deletions
    return errors, length
