"""What the experts of a finished model are chosen for: letters, languages, places in an utterance, loudness.

Every frame of some utterances belongs to one class of each property. Counting which experts the frames of a class are
sent to, layer by layer, shows what a layer's router goes by.

Shapes: S encoder frames of an utterance, N frames of all utterances, K experts per frame, C classes, E experts.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from data.shards.reader import Example
from launcher.inference.finished_model import FinishedModel
from launcher.inference.words import SPACE
from model.search import Hypothesis, with_times

Integers = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

PAUSE = "pause"
OTHER = "other"
# A frame further than this from every letter is in none: CTC marks a letter on a frame or two of those that it takes.
LETTER_REACH_FRAMES = 3.0
NUM_POSITIONS = 10
NUM_LOUDNESSES = 5
# Of letters and languages: what more there is becomes one class, as no page could show it.
MAX_CLASSES = 40
# Below full scale; digital silence has no logarithm.
SILENCE_DB = -100.0


@dataclass
class ExpertChoices:
    """The choices of a model's routers on the utterances that were added."""

    model: FinishedModel
    num_utterances: int = 0
    seconds: float = 0.0
    _letters: list[str] = field(default_factory=list)
    _languages: list[str] = field(default_factory=list)
    _positions: list[Integers] = field(default_factory=list)
    _loudnesses_db: list[Numbers] = field(default_factory=list)
    _experts: dict[str, list[Integers]] = field(default_factory=dict)

    def add(self, example: Example) -> None:
        """Encode an utterance and count each of its frames; its transcript says which letter a frame is of."""
        output = self.model.encode([example.waveform])
        (num_frames,) = output.encoder.lengths_B.tolist()
        tokenizer = self.model.tokenizer
        spoken = Hypothesis(tokens=tokenizer.encode(example.text), frames=[], score=0.0)
        # A decoder alone has no times: letters are then those of no frame.
        aligned = spoken
        if spoken.tokens:
            ((aligned,),) = with_times([[spoken]], output.ctc_BSV, output.encoder.lengths_B)
        self._letters += frame_letters(aligned, tokenizer.pieces, num_frames)
        self._languages += [example.language] * num_frames
        self._positions.append(np.arange(num_frames) * NUM_POSITIONS // max(num_frames, 1))
        rate_hz = self.model.features.config.sample_rate_hz
        self._loudnesses_db.append(frame_loudness(example.waveform, num_frames, self.model.frame_s * rate_hz))
        names = self.model.recognizer.encoder.config.routing_names
        for name, routing in zip(names, output.encoder.routings, strict=True):
            self._experts.setdefault(name, []).append(routing.experts_NK.cpu().numpy())
        self.num_utterances += 1
        self.seconds += len(example.waveform) / rate_hz

    def counts(self) -> dict[str, dict[str, Any]]:
        """For each layer and property the names of the classes and how often their frames chose each expert [C, E].

        A property of a single class says nothing, and is left out.
        """
        experts = self.model.recognizer.encoder.config.experts
        if experts is None or not self._letters:
            return {}
        loudness_N = np.concatenate(self._loudnesses_db)
        # Equally many frames in each class: what counts as loud depends on the recordings.
        borders = np.quantile(loudness_N, np.arange(1, NUM_LOUDNESSES) / NUM_LOUDNESSES)
        classes_N = np.searchsorted(borders, loudness_N, side="right")
        properties = {
            "letter": _classify(self._letters),
            "language": _classify(self._languages),
            "position": (_position_names(), np.concatenate(self._positions)),
            "loudness": (_loudness_names(borders), classes_N),
        }
        layers: dict[str, dict[str, Any]] = {}
        for layer, choices in self._experts.items():
            experts_NK = np.concatenate(choices)
            layers[layer] = {}
            for name, (classes, class_N) in properties.items():
                if len(classes) < 2:
                    continue
                counts_CE = np.zeros((len(classes), experts.count), np.int64)
                np.add.at(counts_CE, (class_N[:, None], experts_NK), 1)
                layers[layer][name] = {"classes": classes, "counts": counts_CE.tolist()}
        return layers


def frame_letters(aligned: Hypothesis, pieces: Sequence[str], num_frames: int) -> list[str]:
    """The letter that each frame is of: the nearest one, or a pause where none is near.

    The letters of a piece share its frames evenly. Without times, all frames are a pause.
    """
    letters = []
    middles = []
    reaches = []
    for token, start, end in zip(aligned.tokens, aligned.frames, aligned.ends, strict=False):
        spelling = pieces[token].replace(SPACE, "").lower()
        width = (end - start) / max(len(spelling), 1)
        for place, letter in enumerate(spelling):
            letters.append(letter)
            middles.append(start + (place + 0.5) * width)
            reaches.append(width / 2 + LETTER_REACH_FRAMES)
    if not letters:
        return [PAUSE] * num_frames

    middles_L = np.array(middles)
    of_frames = []
    for frame in range(num_frames):
        distances_L = np.abs(middles_L - (frame + 0.5))
        nearest = int(distances_L.argmin())
        letter = letters[nearest]
        if distances_L[nearest] > reaches[nearest]:
            letter = PAUSE
        of_frames.append(letter)
    return of_frames


def frame_loudness(waveform: npt.NDArray[np.float32], num_frames: int, frame_samples: float) -> Numbers:
    """The level [S] of each encoder frame in dB below full scale."""
    levels = []
    for frame in range(num_frames):
        samples = waveform[round(frame * frame_samples) : round((frame + 1) * frame_samples)]
        # The last frame may lie in what the features pad a recording with.
        power = 0.0
        if len(samples):
            power = float(np.mean(np.square(samples, dtype=np.float64)))
        levels.append(max(SILENCE_DB, 10 * np.log10(max(power, 1e-12))))
    return np.array(levels)


def _classify(labels: Sequence[str]) -> tuple[list[str], Integers]:
    """The classes of labels, the most frequent first, and the number of each label's class."""
    classes = [label for label, _ in Counter(labels).most_common(MAX_CLASSES)]
    numbers = {label: number for number, label in enumerate(classes)}
    other = len(classes)
    class_N = np.array([numbers.get(label, other) for label in labels])
    if (class_N == other).any():
        classes.append(OTHER)
    return classes, class_N


def _position_names() -> list[str]:
    return [f"{place * 100 // NUM_POSITIONS}%" for place in range(NUM_POSITIONS)]


def _loudness_names(borders_db: Numbers) -> list[str]:
    names = [f"below {borders_db[0]:.0f} dB"]
    for low, high in itertools.pairwise(borders_db):
        names.append(f"{low:.0f} to {high:.0f} dB")
    names.append(f"above {borders_db[-1]:.0f} dB")
    return names
