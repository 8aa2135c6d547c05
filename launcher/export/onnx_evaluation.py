"""Error rates and real-time factors of a model's ONNX graphs beside torch's.

Every batch is recognised in all forms before the next one, so that what else the machine does slows all of them alike.
Times are of encoder and CTC output on one thread; features, search and reading are not in them.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch

from data.errors import DataError
from data.features import LogMel
from data.shards.reader import ShardReader
from data.shards.writer import read_index
from launcher.export.model_files import ModelFiles
from launcher.export.onnx_graphs import INT8_SUFFIX, open_session
from launcher.export.remote_code.network_chorus import greedy_tokens

BATCH_SIZE = 8
RESULTS_FILE = "results.json"

# Features [B, T, F] and lengths [B] to logits and their lengths.
Recognise = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def evaluate_graphs(folder: Path, model: ModelFiles, split: Path) -> list[dict[str, Any]]:
    """Recognise a split's shards greedily by torch, the graphs and their int8 forms; write and return `results.json`.

    Each row has form, wer and cer (fractions), rtf, utterances, seconds and threads. DataError when the split cannot be
    read, has no transcripts or another sample rate.
    """
    forms: dict[str, Recognise] = {"torch": _torch_form(model), "onnx": _onnx_form(folder, ".onnx")}
    if (folder / f"encoder{INT8_SUFFIX}").exists():
        forms["onnx int8"] = _onnx_form(folder, INT8_SUFFIX)

    features = LogMel(model.features)
    features.set_statistics(torch.tensor(model.statistics["mean"]), torch.tensor(model.statistics["std"]))
    references: list[str] = []
    texts: dict[str, list[str]] = {form: [] for form in forms}
    busy_s = dict.fromkeys(forms, 0.0)
    num_samples = 0
    is_first = True
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for waveforms, batch_references in _batches(split, model.features.sample_rate_hz):
            references.extend(batch_references)
            samples_B = torch.tensor([len(waveform) for waveform in waveforms])
            num_samples += int(samples_B.sum())
            rows = [torch.from_numpy(waveform) for waveform in waveforms]
            waveforms_BS = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            features_BTF, lengths_B = features(waveforms_BS, samples_B)
            for form, recognise in forms.items():
                if is_first:
                    # The first call sets up memory and kernels.
                    recognise(features_BTF.numpy(), lengths_B.numpy())
                started = time.perf_counter()
                logits_BSV, logit_lengths_B = recognise(features_BTF.numpy(), lengths_B.numpy())
                busy_s[form] += time.perf_counter() - started
                for tokens in greedy_tokens(torch.from_numpy(logits_BSV), torch.from_numpy(logit_lengths_B)):
                    texts[form].append(model.tokenizer.decode(tokens))
            is_first = False
    finally:
        torch.set_num_threads(threads)

    audio_s = num_samples / model.features.sample_rate_hz
    results = []
    for form in forms:
        row = {
            "form": form,
            "wer": jiwer.wer(references, texts[form]),
            "cer": jiwer.cer(references, texts[form]),
            "rtf": busy_s[form] / audio_s,
            "utterances": len(references),
            "seconds": round(audio_s, 3),
            "threads": 1,
        }
        results.append(row)
    (folder / RESULTS_FILE).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results


def show_results(results: list[dict[str, Any]]) -> list[str]:
    """The lines of a table."""
    lines = [f"{'form':12}{'WER':>8}{'CER':>8}{'RTF':>9}"]
    for row in results:
        lines.append(f"{row['form']:12}{row['wer']:8.2%}{row['cer']:8.2%}{row['rtf']:9.4f}")
    return lines


def _torch_form(model: ModelFiles) -> Recognise:
    @torch.inference_mode()
    def recognise(features_BTF: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        output = model.recognizer(torch.from_numpy(features_BTF), torch.from_numpy(lengths_B))
        return output.ctc_BSV.numpy(), output.encoder.lengths_B.numpy()

    return recognise


def _onnx_form(folder: Path, suffix: str) -> Recognise:
    encoder = open_session(folder / f"encoder{suffix}")
    ctc = open_session(folder / f"ctc{suffix}")

    def recognise(features_BTF: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        frames_BSD, frame_lengths_B = encoder.run(None, {"features": features_BTF, "lengths": lengths_B})
        (logits_BSV,) = ctc.run(None, {"frames": frames_BSD})
        return logits_BSV, frame_lengths_B

    return recognise


def _batches(split: Path, sample_rate_hz: int) -> Iterator[tuple[list[np.ndarray], list[str]]]:
    """The waveforms and transcripts of a split, a few utterances at a time; those without a transcript are left out."""
    reader = ShardReader(read_index(split))
    if reader.index.sample_rate_hz != sample_rate_hz:
        raise DataError(
            f"The shards in {split} have {reader.index.sample_rate_hz} Hz and the model takes {sample_rate_hz} Hz. "
            "Prepare the corpus at the model's rate."
        )
    transcribed = np.flatnonzero(reader.index.text_length)
    if len(transcribed) == 0:
        raise DataError(f"No utterance in {split} has a transcript to compare with. Name a split that has.")
    for first in range(0, len(transcribed), BATCH_SIZE):
        waveforms = []
        texts = []
        for utterance in transcribed[first : first + BATCH_SIZE].tolist():
            example = reader.read(utterance)
            waveforms.append(example.waveform)
            texts.append(example.text)
        yield waveforms, texts
