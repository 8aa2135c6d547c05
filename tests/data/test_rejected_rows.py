"""Rejected rows beyond what memory should hold: none is lost, their number and their order are exact."""

import random

import pytest

from data import rejected_rows
from data.audio import RejectedRow
from data.rejected_rows import RejectedRows


def some_rows(number: int) -> list[RejectedRow]:
    lines = list(range(number))
    random.Random(0).shuffle(lines)
    return [RejectedRow(line // 2, f"reason\n\u2028 {line}", f"k{line}", f"/a/\udcff{line}") for line in lines]


@pytest.mark.parametrize("number", [0, 1, 6, 7, 8, 50])
def test_rows_beyond_those_in_memory_come_back_as_they_were_and_in_order(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """list(RejectedRows(rows)) == sorted(rows)"""
    monkeypatch.setattr(rejected_rows, "MAX_HELD", 7)
    monkeypatch.setattr(rejected_rows, "PIECE_BYTES", 11)
    appended = some_rows(number)
    rows = RejectedRows(appended)
    assert len(rows._held) < 7
    ordered = sorted(appended, key=lambda row: (row.line, row.key))
    assert list(rows) == ordered
    # Once more, and two at a time.
    assert list(zip(rows, rows, strict=True)) == list(zip(ordered, ordered, strict=True))
    assert rows == ordered
    assert rows[:3] == ordered[:3]
    assert len(rows) == number
    if rows:
        assert (rows[0], rows[-1]) == (ordered[0], ordered[-1])
    with pytest.raises(IndexError):
        rows[number]
    rows.append(RejectedRow(-1, "the first"))
    assert rows[0].reason == "the first"
    assert rows != ordered
