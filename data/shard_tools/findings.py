"""The kinds of things that `chorus shards verify` finds: what each means, and whether the data is broken or only odd.

Broken is what a training could not read, or would read as something else than was written. Everything else is a
warning: a training goes on with it, and its user should know.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BROKEN = "broken"
WARNING = "warning"


@dataclass(frozen=True)
class Kind:
    """How bad a kind of finding is, and in a sentence what it means and what to do."""

    severity: str
    meaning: str


KINDS = {
    "records": Kind(BROKEN, "the split's own records cannot be read: fetch or prepare it again"),
    "checksum": Kind(BROKEN, "a shard is not the file that was written: fetch or prepare it again"),
    "truncated": Kind(BROKEN, "a shard is missing or has another size than was written: fetch or prepare it again"),
    "unreadable": Kind(BROKEN, "the utterance cannot be read or decoded as its index says; a training leaves it out"),
    "mismatch": Kind(BROKEN, "the utterance in the shard is not the one that transcripts.jsonl has in its place"),
    "duplicate-key": Kind(BROKEN, "two utterances of a split have one key"),
    "silence": Kind(WARNING, "nothing in the recording is loud enough to be speech"),
    "clipping": Kind(WARNING, "the tops of the waveform are cut off: the recording was too loud"),
    "empty-text": Kind(WARNING, "there is no transcript; stages that need one exclude the utterance"),
    "infeasible-text": Kind(WARNING, "the text has more tokens than CTC has frames; a training excludes the utterance"),
    "rare-character": Kind(WARNING, "a character of a handful of rows: often a typing error or another script"),
    "one-speaker-character": Kind(WARNING, "a character that one speaker alone uses: often a transcriber's habit"),
    "unseen-character": Kind(WARNING, "a character that train does not have: no model can write it"),
    "length-outlier": Kind(WARNING, "far longer or shorter than the others: often cut at the wrong place"),
    "rate-outlier": Kind(WARNING, "far more or less text than its speech has room for: often a wrong transcript"),
    "duplicate-audio": Kind(WARNING, "one recording several times, with one text: it counts more than others"),
    "contradicting-text": Kind(WARNING, "one recording with several texts, of which all but one are wrong"),
    "leaked-audio": Kind(WARNING, "one recording in two splits: error rates on it say nothing"),
    "leaked-text": Kind(WARNING, "one sentence in two splits: error rates on it are too good"),
    "leaked-speaker": Kind(WARNING, "a speaker in two splits, though most are in one: error rates are too good"),
}


@dataclass(frozen=True)
class Item:
    """One case of a finding: the utterances it is about, as SPLIT/KEY where there are two splits, and what was seen."""

    keys: tuple[str, ...]
    detail: str


@dataclass(frozen=True)
class Finding:
    """All cases of one kind in a split, or between two (`train+dev`)."""

    kind: str
    split: str
    items: tuple[Item, ...]

    @property
    def severity(self) -> str:
        return KINDS[self.kind].severity

    @property
    def meaning(self) -> str:
        return KINDS[self.kind].meaning

    @property
    def num_utterances(self) -> int:
        """How many different utterances the cases name."""
        keys: set[str] = set()
        for item in self.items:
            keys.update(item.keys)
        return len(keys)


def collect(kind: str, split: str, items: Iterable[Item]) -> list[Finding]:
    """The finding of these cases; none where there are none."""
    cases = tuple(items)
    if not cases:
        return []
    return [Finding(kind, split, cases)]


def is_broken(findings: Sequence[Finding]) -> bool:
    """Whether any of the findings is more than a warning."""
    return any(finding.severity == BROKEN for finding in findings)
