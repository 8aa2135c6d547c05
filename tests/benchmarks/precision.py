"""Error rates, speed and memory of a finished model with fp32, bf16 and int8, on one core, in turns.

    python -m tests.benchmarks.precision MODEL_FOLDER SHARDS --utterances 200

SHARDS is a split with transcripts, such as RUN/corpus/test. Utterances are recognised greedily in batches as `chorus
transcribe` does with segments, the rounds of the three types one after the other, and the fastest round counts. Time is
the CPU's, so that it does not count what else the machine does.
"""

import argparse
import time
from pathlib import Path

import jiwer
import numpy as np
import torch

from data.shards.index import read_index
from data.shards.reader import ShardReader
from launcher.inference.finished_model import FinishedModel
from launcher.inference.precision import Dtype, set_dtype

BATCH_S = 60.0
DTYPES: tuple[Dtype, ...] = ("fp32", "bf16", "int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--utterances", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)

    models = {}
    for dtype in DTYPES:
        models[dtype] = FinishedModel.load(options.model)
        set_dtype(models[dtype], dtype)
    rate_hz = models["fp32"].features.config.sample_rate_hz
    reader = ShardReader(read_index(options.shards))
    chosen = np.linspace(0, len(reader.index) - 1, min(options.utterances, len(reader.index))).astype(int)
    examples = [reader.read(utterance) for utterance in chosen.tolist()]
    # By length, as evaluations do: little padding.
    examples.sort(key=lambda example: -len(example.waveform))
    references = [example.text for example in examples]
    audio_s = sum(len(example.waveform) for example in examples) / rate_hz
    batch_size = max(1, int(BATCH_S * rate_hz / len(examples[0].waveform)))

    fastest_s = dict.fromkeys(DTYPES, float("inf"))
    texts: dict[str, list[str]] = {}
    for _ in range(options.rounds):
        for dtype, model in models.items():
            started_s = time.process_time()
            texts[dtype] = []
            for start in range(0, len(examples), batch_size):
                batch = examples[start : start + batch_size]
                texts[dtype] += model.recognise([example.waveform for example in batch])
            fastest_s[dtype] = min(fastest_s[dtype], time.process_time() - started_s)

    print(f"{len(examples)} utterances, {audio_s:.1f} s, batches of up to {BATCH_S:g} s; one thread, CPU time")
    for dtype, model in models.items():
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.recognizer.state_dict().values())
        cer = jiwer.cer(references, texts[dtype])
        wer = jiwer.wer(references, texts[dtype])
        speed = fastest_s["fp32"] / fastest_s[dtype]
        print(
            f"{dtype:5} {num_bytes / 1e6:7.2f} MB   CER {cer:7.2%}   WER {wer:7.2%}   real-time factor "
            f"{fastest_s[dtype] / audio_s:.4f}   {speed:.2f} of fp32's speed",
            flush=True,
        )


if __name__ == "__main__":
    main()
