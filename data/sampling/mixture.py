"""Which corpora a run reads, in which shares, and which of their utterances at every step.

A mixture is read micro-batch by micro-batch: each comes whole from one corpus (or, with a temperature over languages,
from one language of one corpus). Such a part has a sampler of its own, so its utterances are read once per epoch of
their own, and where it ends it begins its next epoch in a new order, whatever the others do. Micro-batch `g` of a run
is that of lane `g % lanes` at step `g // lanes`. Which part it belongs to, and which micro-batch of that part it is,
follows from `g` by integer arithmetic alone: the position of a run is its step, and any step is reached at once.

What it promises: after any number of micro-batches, each part has had its share of them, rounded to one in
`SHARE_UNITS`, to within `MAX_DEVIATION` micro-batches. Shares are of hours of audio: a part whose micro-batches hold
less audio has more of them. A part may join at a later step; the steps before stay what they were, and the others go on
within their epochs. A part that is alone at the start is read as a corpus without a mixture is, bit for bit: such a run
may add corpora.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.sampling.sampler import (
    AnyIntegers,
    BatchesConfig,
    BatchSampler,
    BatchSpec,
    Integers,
    Totals,
    exclude,
    random_bits,
)
from data.seeds import derive_seed
from data.shards.joined_split import SplitIndex

# Shares are rounded to this fraction of what is shared, so that powers which differ in their last bit from machine to
# machine give the same plan.
SHARE_UNITS = 2**24
# Each count is rounded at every branch above it; `_share_out` says why no more is lost.
MAX_DEVIATION = 4
# A part is not cut into sequences of fewer micro-batches than this: rounding up would make them too small.
MIN_SLOTS_PER_SEQUENCE = 16
# SentencePiece holds all that it is trained on in memory.
MAX_DRAWN_TEXTS = 5_000_000


@dataclass(frozen=True)
class MixedCorpus:
    """A corpus of a mixture. `from_step`: the step at which it joins; 0 is the start."""

    name: str
    weight: float = 1.0
    from_step: int = 0


@dataclass(frozen=True)
class Part:
    """What has epochs of its own: a corpus, or one language of it."""

    corpus: MixedCorpus
    language: str | None = None

    @property
    def name(self) -> str:
        """The corpus, and its language behind a slash."""
        if self.language is None:
            return self.corpus.name
        return f"{self.corpus.name}/{self.language or 'unknown'}"


@dataclass(frozen=True)
class Mixture:
    """Corpora, and how their shares follow from their hours.

    Over corpora, the share of one is in proportion to weight * hours ** temperature. Over languages, that of a language
    is in proportion to the sum of weight * hours over its corpora, to that power, and is shared out in proportion to
    weight * hours.
    """

    corpora: tuple[MixedCorpus, ...]
    temperature: float
    over: Literal["corpora", "languages"] = "corpora"

    def shares(self, hours: Mapping[Part, float]) -> dict[Part, float]:
        """The share of the audio that each of some parts has; together 1. Parts without audio have none."""
        amounts: dict[Part, float] = {}
        by_language: dict[str | None, float] = {}
        for part, part_hours in hours.items():
            if part_hours > 0:
                amount = part.corpus.weight * part_hours
                amounts[part] = amount
                by_language[part.language] = by_language.get(part.language, 0.0) + amount

        unscaled: dict[Part, float] = {}
        for part, amount in amounts.items():
            if self.over == "languages":
                whole = by_language[part.language]
                unscaled[part] = whole**self.temperature * amount / whole
            else:
                unscaled[part] = part.corpus.weight * hours[part] ** self.temperature
        total = sum(unscaled.values())
        return {part: value / total for part, value in unscaled.items()}


@dataclass(frozen=True)
class _Branch:
    """A node of the tree that shares micro-batches out: of the first `n` that come here, `n * left_units //
    SHARE_UNITS` go to the left."""

    left: _Branch | int
    right: _Branch | int
    left_units: int

    def locate(self, position: int) -> tuple[int, int]:
        """The leaf that takes a micro-batch, and how many that leaf has had before it."""
        before = position * self.left_units // SHARE_UNITS
        after = (position + 1) * self.left_units // SHARE_UNITS
        if after > before:
            return _locate(self.left, before)
        return _locate(self.right, position - before)

    def counts(self, position: int) -> Iterator[tuple[int, int]]:
        """How many of the first `position` micro-batches each leaf has had."""
        left = position * self.left_units // SHARE_UNITS
        yield from _counts(self.left, left)
        yield from _counts(self.right, position - left)


def _locate(node: _Branch | int, position: int) -> tuple[int, int]:
    if isinstance(node, int):
        return node, position
    return node.locate(position)


def _counts(node: _Branch | int, position: int) -> Iterator[tuple[int, int]]:
    if isinstance(node, int):
        yield node, position
    else:
        yield from node.counts(position)


def _share_out(shares: Mapping[int, float]) -> _Branch | int:
    """Huffman's tree over numbers with shares: what is small lies deep, so that no path loses much by rounding.

    Every branch rounds down what goes to its left, by less than one micro-batch, and a node hands on what it lost in
    proportion to its share of its parent. In Huffman's tree no inner node has more than 2/3 of its parent, so a leaf
    has lost less than 1 + 1 + 2/3 + 4/9 + ... = 4.
    """
    # The second entry decides between equal shares, and no nodes are ever compared.
    heap: list[tuple[float, int, _Branch | int]] = []
    for number, share in shares.items():
        heap.append((share, number, number))
    heapq.heapify(heap)
    next_number = max(shares) + 1
    while len(heap) > 1:
        small, _, left = heapq.heappop(heap)
        large, _, right = heapq.heappop(heap)
        whole = small + large
        left_units = round(small / whole * SHARE_UNITS)
        # However small a share is, its turn comes.
        left_units = max(1, left_units)
        branch = _Branch(left, right, left_units)
        heapq.heappush(heap, (whole, next_number, branch))
        next_number += 1
    return heap[0][2]


@dataclass(frozen=True)
class _Segment:
    """The steps from one joining to the next: who is shared out to, and what each part has had before."""

    first_step: int
    tree: _Branch | int
    counts: Mapping[int, int]


@dataclass(frozen=True)
class PartProgress:
    """How far a part is after a number of steps. `share` is of the audio, among the parts that are read then."""

    part: Part
    hours: float
    share: float
    hours_read: float
    epochs: float


class MixtureSampler:
    """The batches of a run over a mixture; what `BatchSampler` promises, part by part.

    Arrays are those of `BatchSampler`, over the utterances of all corpora one after the other. `part` [N] numbers
    `parts`. A part of a corpus without a usable utterance is not read; DataError when a whole corpus has none, or when
    nothing is there at the first step.
    """

    def __init__(
        self,
        mixture: Mixture,
        parts: Sequence[Part],
        part: AnyIntegers,
        shard: AnyIntegers,
        samples: AnyIntegers,
        tokens: AnyIntegers,
        min_frames: AnyIntegers,
        batches: BatchesConfig,
        seed: int,
        sample_rate_hz: int,
        speeds: Sequence[float] = (1.0,),
        *,
        encoder_frames: Callable[[Integers], Integers],
        transcribed: npt.NDArray[np.bool_] | None = None,
    ):
        self.mixture = mixture
        self.parts = tuple(parts)
        self.batches = batches
        self.seed = seed
        self.sample_rate_hz = sample_rate_hz
        self.shard = np.asarray(shard)
        self._samples = np.asarray(samples, dtype=np.int64)
        self._tokens = np.asarray(tokens)
        self._min_frames = np.asarray(min_frames)
        self._speeds = tuple(speeds)
        self._encoder_frames = encoder_frames
        self.excluded = exclude(
            self._samples, self._min_frames, batches, sample_rate_hz, speeds, encoder_frames, transcribed
        )
        self._transcribed = transcribed
        self._usable = np.ones(len(self._samples), dtype=bool)
        for utterances in self.excluded.values():
            self._usable[utterances] = False

        # Of each part all utterances: what one draws depends on its number in its part, whatever is excluded.
        self._positions: dict[int, Integers] = {}
        self._hours: dict[int, float] = {}
        for number in range(len(parts)):
            positions = np.flatnonzero(part == number)
            num_samples = int(self._usable_samples(positions).sum())
            if num_samples:
                self._positions[number] = positions
                self._hours[number] = num_samples / sample_rate_hz / 3600
        self._check_corpora()

        at_start = [number for number in self._positions if parts[number].corpus.from_step == 0]
        self._samplers: dict[int, BatchSampler] = {}
        for number in self._positions:
            self._samplers[number] = self._part_sampler(number, alone=at_start == [number])
        self._segments = list(self._make_segments())
        num_slots = sum(self._slots(number) for number in at_start)
        # Of a mixture, as many steps as would read each corpus of its start once.
        self.steps_per_epoch = math.ceil(num_slots / batches.lanes)

    def _usable_samples(self, positions: Integers) -> Integers:
        """The lengths, in samples, of those of some utterances that are not excluded."""
        usable = positions[self._usable[positions]]
        return self._samples[usable]

    def _check_corpora(self) -> None:
        """Refuse (DataError) a corpus of which nothing can be read: its share would silently go to the others."""
        usable_corpora = {self.parts[number].corpus.name for number in self._positions}
        for corpus in self.mixture.corpora:
            if corpus.name in usable_corpora:
                continue
            counts = [f"{len(utterances)} {reason}" for reason, utterances in self.excluded.items()]
            raise DataError(
                f"No utterance of the corpus {corpus.name} is left to train on; of all corpora are excluded: "
                f"{', '.join(counts)}. Look at that corpus, at batches.min_utterance_s "
                f"({self.batches.min_utterance_s}) and at batches.max_utterance_s ({self.batches.max_utterance_s}), "
                "or take it out of the mixture."
            )

    def _part_sampler(self, number: int, alone: bool) -> BatchSampler:
        """The sampler of a part. In place of lanes it has sequences, from which its micro-batches are taken in turn: so
        the lanes of a step read from several pools, as those of one corpus do."""
        if alone:
            # As without a mixture, so that a run of one corpus may add others.
            return self._cut_part(number, self.seed, self.batches.lanes)

        samples = self._usable_samples(self._positions[number])
        # By what its utterances cost: the number of its micro-batches is known only after the cut.
        capacities = self.batches.capacity(samples, self.sample_rate_hz)
        estimated_slots = int((1.0 / capacities).sum())
        most_sequences = max(1, estimated_slots // MIN_SLOTS_PER_SEQUENCE)
        # Not the recipe's seed: parts that draw alike would be slow and fast at the same time.
        seed = derive_seed(self.seed, "mixture", self.parts[number].name)
        num_sequences = min(self.batches.lanes, most_sequences)
        sampler = self._cut_part(number, seed, num_sequences)
        # Empty micro-batches of several parts could meet in one step, which then had nothing to learn from. One
        # sequence has none.
        num_slots = sampler.steps_per_epoch * sampler.batches.lanes
        if num_slots > len(samples):
            sampler = self._cut_part(number, seed, 1)
        return sampler

    def _cut_part(self, number: int, seed: int, sequences: int) -> BatchSampler:
        positions = self._positions[number]
        transcribed = None
        if self._transcribed is not None:
            transcribed = self._transcribed[positions]
        return BatchSampler(
            self.shard[positions],
            self._samples[positions],
            self._tokens[positions],
            self._min_frames[positions],
            self.batches.model_copy(update={"lanes": sequences}),
            seed,
            self.sample_rate_hz,
            self._speeds,
            encoder_frames=self._encoder_frames,
            transcribed=transcribed,
        )

    def _slots(self, number: int) -> int:
        """Micro-batches of a part in each of its epochs."""
        sampler = self._samplers[number]
        return sampler.steps_per_epoch * sampler.batches.lanes

    def _make_segments(self) -> Iterator[_Segment]:
        """One for each step at which a corpus joins. Counts go on from one to the next: so do epochs."""
        counts: Counter[int] = Counter()
        previous: _Segment | None = None
        first_steps = {self.parts[number].corpus.from_step for number in self._samplers}
        for first_step in sorted(first_steps):
            if previous is not None:
                position = (first_step - previous.first_step) * self.batches.lanes
                counts.update(dict(_counts(previous.tree, position)))
            # Shares are of hours. A micro-batch of less audio counts for less: it has to come more often.
            micro_batch_shares = {}
            for number, share in self._shares(first_step).items():
                micro_batch_shares[number] = share * self._slots(number) / self._hours[number]
            tree = _share_out(micro_batch_shares)
            previous = _Segment(first_step, tree, dict(counts))
            yield previous

    def _shares(self, step: int) -> dict[int, float]:
        """The share of the audio of each part that is read at a step."""
        hours: dict[Part, float] = {}
        number_of_part: dict[Part, int] = {}
        for number, part_hours in self._hours.items():
            part = self.parts[number]
            if part.corpus.from_step <= step:
                hours[part] = part_hours
                number_of_part[part] = number
        return {number_of_part[part]: share for part, share in self.mixture.shares(hours).items()}

    def _segment(self, step: int) -> _Segment:
        """The segment that a step lies in."""
        # There are a few: as many as corpora have been added.
        segment = self._segments[0]
        for later in self._segments[1:]:
            if later.first_step <= step:
                segment = later
        return segment

    @property
    def shard_sizes(self) -> Integers:
        """Utterances of each shard that are not excluded, part after part."""
        return np.concatenate([sampler.shard_sizes for sampler in self._samplers.values()])

    def position(self, step: int) -> tuple[int, int]:
        """How often the corpora of the start could have been read once until a step, and the steps since."""
        return divmod(step, self.steps_per_epoch)

    def micro_batch(self, step: int, lane: int) -> BatchSpec:
        """What `lane` reads at `step`; its epoch is that of its part."""
        segment = self._segment(step)
        position = (step - segment.first_step) * self.batches.lanes + lane
        number, index = _locate(segment.tree, position)
        index += segment.counts.get(number, 0)
        sampler = self._samplers[number]
        # The sequences of the part in turn.
        part_step, sequence = divmod(index, sampler.batches.lanes)
        batch = sampler.micro_batch(part_step, sequence)
        utterances = self._positions[number][batch.utterances]
        return replace(batch, step=step, lane=lane, utterances=utterances)

    def part_of(self, step: int, lane: int) -> Part:
        """The part that `lane` reads from at `step`."""
        segment = self._segment(step)
        position = (step - segment.first_step) * self.batches.lanes + lane
        number, _ = _locate(segment.tree, position)
        return self.parts[number]

    def totals(self, step: int) -> Totals:
        """Utterances, tokens and encoder frames of a step, over all lanes."""
        batches = [self.micro_batch(step, lane) for lane in range(self.batches.lanes)]
        utterances = np.concatenate([batch.utterances for batch in batches])
        samples = np.concatenate([batch.samples for batch in batches])
        return Totals(
            utterances=len(utterances),
            tokens=int(self._tokens[utterances].sum()),
            frames=int(self._encoder_frames(samples).sum()),
        )

    def micro_batches_read(self, steps: int) -> dict[Part, int]:
        """How many micro-batches of each part the first `steps` steps read."""
        segment = self._segment(max(0, steps - 1))
        position = (steps - segment.first_step) * self.batches.lanes
        counts = Counter(segment.counts)
        counts.update(dict(_counts(segment.tree, position)))
        return {self.parts[number]: counts[number] for number in self._samplers}

    def progress(self, steps: int) -> list[PartProgress]:
        """What the first `steps` steps read of each part; `share` is that at the last of them."""
        shares = self._shares(max(0, steps - 1))
        read = self.micro_batches_read(steps)
        rows: list[PartProgress] = []
        for number in self._samplers:
            part = self.parts[number]
            epochs = read[part] / self._slots(number)
            hours = self._hours[number]
            row = PartProgress(
                part=part,
                hours=hours,
                share=shares.get(number, 0.0),
                hours_read=epochs * hours,
                epochs=epochs,
            )
            rows.append(row)
        return rows


def draw_texts(
    parts: Sequence[Part], part: AnyIntegers, index: SplitIndex, mixture: Mixture, seed: int
) -> Iterator[str]:
    """The transcripts of an index, each as often as its part is read for its hours: what a tokenizer is trained on.

    `part` [N] numbers `parts`. The part that is read least often gives each of its texts once, the others more often,
    up to MAX_DRAWN_TEXTS in all. Above that, each gives fewer in proportion, at random by the seed; a text with a
    character that none before it had is always given.
    """
    transcribed = index.text_length > 0
    samples: dict[Part, float] = {}
    for number, one in enumerate(parts):
        samples[one] = float(index.samples[transcribed & (part == number)].sum())
    # Samples do for hours: shares do not depend on the unit.
    shares = mixture.shares(samples)
    rates = np.zeros(len(parts))
    for number, one in enumerate(parts):
        if one in shares:
            rates[number] = shares[one] / samples[one]
    lowest_rate = min(rates[rates > 0], default=1.0)
    repeats = np.where(transcribed, rates[part] / lowest_rate, 0.0)
    num_texts = max(1.0, float(repeats.sum()))
    repeats *= min(1.0, MAX_DRAWN_TEXTS / num_texts)

    # Of 2.3 times two are certain, and a draw of the text decides on the third. In integers, as all that decides.
    whole = np.floor(repeats).astype(np.int64)
    draws_seed = derive_seed(seed, "tokenizer texts")
    draws = random_bits(draws_seed, np.arange(len(index))) % SHARE_UNITS
    is_drawn = draws < np.rint((repeats - whole) * SHARE_UNITS)
    times = whole + is_drawn.astype(np.int64)
    characters: set[str] = set()
    for text, text_times in zip(index.transcripts(), times.tolist(), strict=True):
        if text_times == 0 and not characters.issuperset(text):
            text_times = 1
        if text_times:
            characters.update(text)
        for _ in range(text_times):
            yield text
