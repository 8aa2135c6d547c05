"""Real-time factor and error rates of each search with one model, on one core, on the embedded corpus.

    python -m tests.benchmarks.search MODEL_FOLDER --utterances 40 --language-model lm.arpa

MODEL_FOLDER is a finished model of the corpus' language. The recogniser's own time is measured apart from the search's:
each batch is encoded once, and searched in every way. Searches that the model cannot do are left out, and named.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jiwer
import torch

from data.audio import read_audio
from data.corpora import CORPORA
from data.corpora.aelita import AelitaConfig
from launcher.errors import ConfigError
from launcher.inference.finished_model import FinishedModel
from launcher.inference.search import Search
from launcher.recipe.search import read_search

BATCH = 8
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"kind": "greedy"},
    "prefix beam 4": {"kind": "prefix_beam", "beam": 4},
    "prefix beam 10": {"kind": "prefix_beam", "beam": 10},
    "attention beam 10": {"kind": "attention_beam", "beam": 10},
    "rescoring 10": {"kind": "rescoring", "beam": 10},
    "rescoring 10, two decoders": {"kind": "rescoring", "beam": 10, "reverse_weight": 0.3},
    "joint 10": {"kind": "joint", "beam": 10},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--utterances", type=int, default=40)
    parser.add_argument("--split", default="test")
    parser.add_argument("--language-model", type=Path, help="ARPA file of words: the beams are measured with it too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = FinishedModel.load(options.model)
    searches = _searches(model, options.language_model)
    rate_hz = model.features.config.sample_rate_hz
    selected = [u for u in CORPORA["aelita"].select(AelitaConfig(), seed=1).utterances if u.split == options.split]
    utterances = selected[: options.utterances]
    waveforms = [read_audio(utterance, rate_hz) for utterance in utterances]
    references = [utterance.text for utterance in utterances]
    audio_s = sum(map(len, waveforms)) / rate_hz
    encoder_s, outputs = _encode(model, waveforms)
    print(f"{len(waveforms)} utterances, {audio_s:.1f} s, batches of {BATCH}; one thread")
    print(f"{'encoder':40} {encoder_s / audio_s:8.4f}")
    for name, search in searches.items():
        search(outputs[0])  # a first call sets up kernels
        started = time.perf_counter()
        texts = [model.tokenizer.decode(found[0].tokens) for output in outputs for found in search(output)]
        rtf = (time.perf_counter() - started) / audio_s
        cer, wer = jiwer.cer(references, texts), jiwer.wer(references, texts)
        print(f"{name:40} {rtf:8.4f}   CER {cer:7.2%}   WER {wer:7.2%}", flush=True)


def _searches(model: FinishedModel, language_model: Path | None) -> dict[str, Search]:
    searches = {}
    for name, values in SEARCHES.items():
        try:
            searches[name] = Search(read_search(values, name), model.recognizer, model.tokenizer)
        except ConfigError as error:
            print(f"{name} is left out: {error}")
            continue
        if language_model and values["kind"] != "greedy":
            with_model = read_search({**values, "language_model": {"path": language_model}}, name)
            searches[f"{name}, language model"] = Search(with_model, model.recognizer, model.tokenizer)
    return searches


@torch.inference_mode()
def _encode(model: FinishedModel, waveforms: list) -> tuple[float, list]:
    outputs = []
    model.encode(waveforms[:BATCH])
    started = time.perf_counter()
    for start in range(0, len(waveforms), BATCH):
        outputs.append(model.encode(waveforms[start : start + BATCH]))
    return time.perf_counter() - started, outputs


if __name__ == "__main__":
    main()
