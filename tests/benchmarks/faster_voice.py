"""A voice that no model of the digits has learnt: strings by one speaker, played faster, pitch and formants with it.

    python -m tests.benchmarks.faster_voice DIR theo 1.3 --out voice
    chorus prepare folder --manifest voice/manifest.jsonl --out voice/shards

Writes a minute of train, and dev and test of other takes, as a manifest with its recordings.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import soundfile

from data.audio import read_audio
from data.corpora.fsdd import FsddConfig, select

SPEAKERS = {"george", "jackson", "lucas", "nicolas", "theo", "yweweler"}
SAMPLE_RATE_HZ = 16_000
TRAIN_S = 60.0
SEED = 7


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("speaker", choices=sorted(SPEAKERS))
    parser.add_argument("factor", type=float)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()

    others = tuple(sorted(SPEAKERS - {options.speaker}))
    config = FsddConfig(root=options.root, held_out_speakers=others, train_strings=60, dev_strings=20, test_strings=100)
    audio = options.out / "audio"
    audio.mkdir(parents=True)
    rows = []
    train_s = 0.0
    for utterance in select(config, SEED).utterances:
        # The others' strings.
        if utterance.split == "test_unseen":
            continue
        waveform = read_audio(utterance, SAMPLE_RATE_HZ)
        # Between samples linearly: takes are 8 kHz speech, so that nothing lies above what remains.
        positions = np.arange(0, len(waveform) - 1, options.factor)
        faster = np.interp(positions, np.arange(len(waveform)), waveform).astype(np.float32)
        seconds = len(faster) / SAMPLE_RATE_HZ
        if utterance.split == "train":
            if train_s + seconds > TRAIN_S:
                continue
            train_s += seconds
        name = f"{utterance.key}.wav"
        soundfile.write(audio / name, faster, SAMPLE_RATE_HZ)
        rows.append({"audio": f"audio/{name}", "text": utterance.text, "split": utterance.split, "key": utterance.key})
    lines = [json.dumps(row) + "\n" for row in rows]
    (options.out / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{train_s:.1f} s of train, {len(rows)} strings")


if __name__ == "__main__":
    main()
