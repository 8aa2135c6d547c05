"""Why rows of a corpus were rejected, counted by kind: what `chorus prepare` shows of them."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from data.audio import RejectedRow

# Part of a reason, and what rows with such a reason have in common.
KINDS = (
    ("there is no audio file", "no such file"),
    ("its text may be that of a part", "recordings of another length than their row says"),
    ("not a plain file", "members of a tar that are no plain files"),
    ("leads out of its folder", "members of a tar that are no plain files"),
    ("the tar ", "tars that are damaged or not read"),
    ("of a text", "texts longer than can be read"),
    ("characters, more than", "texts longer than can be read"),
    ("breaks off", "audio that breaks off"),
    ("lacks Ogg pages", "audio that breaks off"),
    ("is damaged", "damaged audio"),
    ("no audio, or damaged", "damaged or no audio"),
    ("which is not read here", "formats that are not read"),
    ("and not a recording", "archives or pages instead of recordings"),
    ("and not the recording", "archives or pages instead of recordings"),
    ("compressed with gzip", "archives or pages instead of recordings"),
    ("which part of the recording", "columns that name a part and are not read"),
    ("cannot be read (", "no permission to read"),
    ("digital silence", "digital silence"),
    ("holds no samples", "audio without samples"),
    ("less than one frame", "too short for speech"),
    ("is an empty file", "empty files"),
    ("samples with a peak of", "samples beyond full scale"),
    ("cancel each other out", "channels that cancel out"),
    ("lies outside of", "times outside of the recording"),
    ("is not positive", "times that contradict each other"),
    ("is not behind its start", "times that contradict each other"),
    ("differ, start is", "times that contradict each other"),
    ("is not in seconds", "times in other units"),
    ("that can be read at once", "longer than can be read at once"),
    ("last more than", "longer than can be read at once"),
    ("sample rate of", "rates or channels beyond what can be read"),
    ("channels; up to", "rates or channels beyond what can be read"),
    ("recordings of unequal shape", "files joined at unequal rates or channels"),
    ("save it again", "headers that say too little"),
    ("its text is empty", "no text"),
    ("has no line there", "recordings without a transcript"),
    ("nothing is left of its text", "no words in the text"),
    ("is marked as no speech", "segments marked as no speech"),
    ("is not to be scored", "segments that are not to be scored"),
    ("is below min_confidence", "segments of low confidence"),
    (" belongs to ", "rows that share something with dev or test"),
    ("is not unpacked", "archives that are not unpacked"),
    ("names no audio", "no name of a file"),
    ("is already that of", "a key or recording that another row has"),
    ("not UTF-8", "not UTF-8"),
    ("not JSON", "not JSON"),
    ("a JSON ", "not JSON"),
    ("quotation mark", "an open quotation mark"),
    ("carriage return", "a carriage return in a field"),
    ("fields of the first line", "another number of fields than columns"),
    ("half of a character", "damaged text"),
    ("a character that was lost", "damaged text"),
    ("twice, in different case", "a column twice"),
    ("both give the", "two columns that differ"),
    ("under several names", "several texts of one row"),
    # Before what they may quote.
    ("a segment of ", "segments that say too little"),
    ("a recording of the list", "recordings of the list that say too little"),
    ("expected a", "a value of another type"),
    ("characters other than letters", "a split that cannot be a name"),
    ("names a command", "a command instead of a file"),
    ("is a command", "a command instead of a file"),
    ("transforms", "transforms of lhotse"),
    ("is not mixed here", "mixed cuts of lhotse"),
    ("are not mixed here", "mixed cuts of lhotse"),
    ("is not in wav.scp", "a recording that is not listed"),
    ("has a text and is not in", "a text without a recording"),
    ("not a line of STM", "lines that are not of the list's form"),
    ("not one of lhotse's", "lines that are not of the list's form"),
    ("is not named by the words in it", "recordings with other names than the corpus gives"),
    # Last: a command, a form of lines and others speak of channels too.
    ("channel", "a channel that is not there"),
)
OTHER = "other reasons"
# Kinds that one line names by themselves.
MAX_KINDS = 6
# Characters of a first reason.
MAX_REASON = 160


@dataclass(frozen=True)
class ReasonCount:
    """How many rows were rejected for one kind of reason, and the first of them."""

    kind: str
    count: int
    first: RejectedRow


def count_reasons(rejected: Iterable[RejectedRow]) -> list[ReasonCount]:
    """The kinds of reasons, those of most rows first."""
    num_rows: Counter[str] = Counter()
    first_rows: dict[str, RejectedRow] = {}
    for row in rejected:
        kind = _kind(row.reason)
        num_rows[kind] += 1
        first_rows.setdefault(kind, row)
    counts = [ReasonCount(kind, num_rows[kind], row) for kind, row in first_rows.items()]
    return sorted(counts, key=lambda reason: -reason.count)


def describe_rejections(rejected: Iterable[RejectedRow]) -> str:
    """One line: `12 rejected: 8 no such file (first: line 3: ...), 4 no text (first: ...)`."""
    counts = count_reasons(rejected)
    if not counts:
        return "0 rejected"
    num_rows = sum(reason.count for reason in counts)
    parts: list[str] = []
    for reason in counts[:MAX_KINDS]:
        # A cell that is quoted may hold line ends.
        first = " ".join(reason.first.reason.split()).rstrip(".")
        if len(first) > MAX_REASON:
            first = f"{first[:MAX_REASON]}..."
        if reason.first.line:
            first = f"line {reason.first.line}: {first}"
        parts.append(f"{reason.count} {reason.kind} (first: {first})")
    rest = sum(reason.count for reason in counts[MAX_KINDS:])
    if rest:
        parts.append(f"{rest} of {len(counts) - MAX_KINDS} other kinds")
    return f"{num_rows} rejected: {', '.join(parts)}"


# Thousands of rows have the same thing wrong with them.
@lru_cache(maxsize=1024)
def _kind(reason: str) -> str:
    # Names of files and quoted cells say anything; what Chorus says stands around them.
    words = re.sub(r"'[^']*'|\S*[/\\]\S*", "", reason)
    for text in (words, reason):
        for part, kind in KINDS:
            if part in text:
                return kind
    return OTHER
