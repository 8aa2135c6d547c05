"""Models that write pseudo-labels: finished models of Chorus, and models of `transformers` from local folders.

Of `transformers`: Whisper, Speech2Text, and wav2vec 2.0 or HuBERT with a CTC output, as save_pretrained writes model,
feature extractor and tokenizer. Weights are safetensors; no code of a folder is run, and nothing is fetched. Texts are
found greedily, so that the same recordings in the same batches give the same texts.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
from torch import Tensor

from launcher.errors import CheckpointError, ConfigError
from launcher.inference.finished_model import FinishedModel
from launcher.inference.foreign_folder import MissingWeightsError, open_pretrained, read_mapping, refuse_code
from model.export import DESCRIPTION_FILE, HUB_DESCRIPTION_FILE

CTC_MODELS = ("wav2vec2", "hubert")
SEQUENCE_MODELS = ("whisper", "speech_to_text")
# All of them take it.
TRANSFORMERS_RATE_HZ = 16_000


@dataclass(frozen=True)
class Label:
    """A text, and the geometric mean of the probabilities of its tokens, 0 of an empty one.

    `ended` is False where the model wrote as many tokens as it may and did not end the text.
    """

    text: str
    confidence: float
    ended: bool = True


class Labeller(ABC):
    """A model that writes down what was said in waveforms.

    `max_seconds` is the longest utterance that it hears as a whole. Utterances are batched where padding cannot change
    what is heard of another one.
    """

    sample_rate_hz = TRANSFORMERS_RATE_HZ
    max_seconds = math.inf
    batched = True

    def label(self, waveforms: Sequence[np.ndarray], rate_hz: int) -> list[Label]:
        """The labels of mono float32 waveforms at that rate."""
        if rate_hz != self.sample_rate_hz:
            waveforms = [soxr.resample(waveform, rate_hz, self.sample_rate_hz) for waveform in waveforms]
        groups = [list(waveforms)]
        if not self.batched:
            groups = [[waveform] for waveform in waveforms]
        labels = []
        for group in groups:
            labels += self.label_batch(group)
        return labels

    @abstractmethod
    def label_batch(self, waveforms: Sequence[np.ndarray]) -> list[Label]:
        """The labels of waveforms at the model's own rate, as one batch."""


def open_labeller(folder: Path, device: torch.device, language: str = "") -> Labeller:
    """The model in a folder. `language` is what a multilingual Whisper writes; without, it hears which it is.

    CheckpointError where the folder cannot be read, ConfigError where what is in it writes no texts.
    """
    if (folder / DESCRIPTION_FILE).is_file():
        return ChorusLabeller(FinishedModel.load(folder, device=device))
    if not (folder / HUB_DESCRIPTION_FILE).is_file():
        raise CheckpointError(
            f"{folder} holds no model that can be opened: it has neither {DESCRIPTION_FILE} nor "
            f"{HUB_DESCRIPTION_FILE}. Name the folder of a finished model, or what save_pretrained wrote."
        )
    config = read_mapping(folder / HUB_DESCRIPTION_FILE, "The model")
    kind = config.get("model_type")
    if kind == "chorus":
        return ChorusLabeller(FinishedModel.load(folder, device=device))
    if kind in CTC_MODELS:
        return CtcLabeller(folder, device)
    if kind in SEQUENCE_MODELS:
        return SequenceLabeller(folder, device, language)
    raise ConfigError(
        f"{folder} holds a model of type {str(kind)[:80]!r}, which cannot write labels here. Known are finished models "
        f"of Chorus and, of transformers, {', '.join(SEQUENCE_MODELS + CTC_MODELS)}."
    )


class ChorusLabeller(Labeller):
    """A finished model of Chorus, searched greedily."""

    def __init__(self, model: FinishedModel):
        self.model = model
        self.sample_rate_hz = model.features.config.sample_rate_hz

    def label_batch(self, waveforms: Sequence[np.ndarray]) -> list[Label]:
        labels = []
        for hypotheses in self.model.hypotheses(list(waveforms)):
            best = hypotheses[0]
            text = self.model.tokenizer.decode(best.tokens)
            labels.append(Label(text, _geometric_mean(best.confidences)))
        return labels


class TransformersLabeller(Labeller):
    """What models of `transformers` have in common: model, front-end and tokenizer of a folder."""

    auto_class = ""

    def __init__(self, folder: Path, device: torch.device):
        self.folder = folder
        self.device = device
        refuse_code(folder, "The model")
        try:
            import transformers
        except ImportError:
            raise ConfigError(
                f"{folder} holds a model of transformers, which is not installed. Run: pip install "
                "'chorus-asr[teachers]'."
            ) from None
        # It warns of each option of a model's own configuration that it has a newer name for.
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self.front_end: Any = transformers.AutoFeatureExtractor.from_pretrained(folder, **local)
            self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, **local)
            model = open_pretrained(folder, getattr(transformers, self.auto_class))
        except MissingWeightsError as missing:
            raise CheckpointError(
                f"The model in {folder} lacks weights of what its config.json describes, {missing} among them: they "
                "would be drawn at random. Copy the folder again from where it was made, or name a model that was "
                "trained to write texts."
            ) from None
        # Each class of transformers stumbles over odd values of its files in its own way.
        except Exception as error:
            reason = " ".join(f"{error}".split())
            raise CheckpointError(
                f"The model in {folder} cannot be opened by transformers: {reason}. It takes what save_pretrained of "
                "model, feature extractor and tokenizer write, with the weights as safetensors."
            ) from None
        self.model: Any = model.to(device).eval().requires_grad_(False)

    def inputs(self, waveforms: Sequence[np.ndarray]) -> Any:
        inputs = self.front_end(
            list(waveforms),
            sampling_rate=TRANSFORMERS_RATE_HZ,
            padding=self.padding,
            return_attention_mask=True,
            return_tensors="pt",
        )
        return inputs.to(self.device)

    padding: bool | str = True


class CtcLabeller(TransformersLabeller):
    """wav2vec 2.0 or HuBERT with a CTC output: the likeliest token of each frame."""

    auto_class = "AutoModelForCTC"

    def __init__(self, folder: Path, device: torch.device):
        super().__init__(folder, device)
        # Group norms look at all of an utterance, padding included.
        self.batched = self.model.config.feat_extract_norm == "layer"

    @torch.inference_mode()
    def label_batch(self, waveforms: Sequence[np.ndarray]) -> list[Label]:
        logits_BSV = self.model(**self.inputs(waveforms)).logits.float().cpu()
        blank = self.model.config.pad_token_id
        labels = []
        for waveform, logits_SV in zip(waveforms, logits_BSV, strict=True):
            num_frames = int(self.model._get_feat_extract_output_lengths(torch.tensor(len(waveform))))
            log_probs_S, tokens_S = logits_SV[: max(0, num_frames)].log_softmax(-1).max(-1)
            previous = blank
            probabilities = []
            for token, log_prob in zip(tokens_S.tolist(), log_probs_S.tolist(), strict=True):
                if token not in (blank, previous):
                    probabilities.append(math.exp(log_prob))
                previous = token
            text = self.tokenizer.decode(tokens_S.tolist(), skip_special_tokens=True)
            labels.append(Label(text, _geometric_mean(probabilities)))
        return labels


class SequenceLabeller(TransformersLabeller):
    """Whisper or Speech2Text: the likeliest next token, until the text ends."""

    auto_class = "AutoModelForSpeechSeq2Seq"

    def __init__(self, folder: Path, device: torch.device, language: str):
        super().__init__(folder, device)
        # Sampling and beams of the folder's own settings would make another text, or more than one.
        self.options: dict[str, Any] = {
            "do_sample": False,
            "num_beams": 1,
            "return_dict_in_generate": True,
            "output_scores": True,
        }
        if self.model.config.model_type == "speech_to_text":
            # Its convolutions look beyond the end of an utterance.
            self.batched = False
            return
        # Always of one length; more is cut off.
        self.padding = "max_length"
        self.max_seconds = float(self.front_end.chunk_length)
        self.options |= {"return_timestamps": False, "force_unique_generate_call": True}
        settings = self.model.generation_config
        if not getattr(settings, "is_multilingual", False):
            return
        self.options["task"] = "transcribe"
        if language:
            known = getattr(settings, "lang_to_id", {})
            if f"<|{language}|>" not in known:
                names = ", ".join(sorted(name.strip("<|>") for name in known))
                raise ConfigError(f"--language is {language!r}, which {folder} does not know. It knows {names}.")
            self.options["language"] = language

    @torch.inference_mode()
    def label_batch(self, waveforms: Sequence[np.ndarray]) -> list[Label]:
        output = self.model.generate(**self.inputs(waveforms), **self.options)
        # What was asked for comes before what was written: the start, the language, the task.
        tokens_BU = output.sequences[:, -len(output.scores) :].cpu()
        log_probs_BU = _log_probabilities(output.scores, tokens_BU)
        ends = set(np.atleast_1d(self.model.generation_config.eos_token_id).tolist())
        labels = []
        for tokens_U, log_probs_U in zip(tokens_BU.tolist(), log_probs_BU.tolist(), strict=True):
            length = 0
            while length < len(tokens_U) and tokens_U[length] not in ends:
                length += 1
            text = self.tokenizer.decode(tokens_U[:length], skip_special_tokens=True).strip()
            # The end counts: a text that could as well go on is not sure.
            probabilities = [math.exp(log_prob) for log_prob in log_probs_U[: length + 1]]
            confidence = _geometric_mean(probabilities) if text else 0.0
            labels.append(Label(text, confidence, ended=length < len(tokens_U)))
        return labels


def _log_probabilities(scores: Sequence[Tensor], tokens_BU: Tensor) -> Tensor:
    """The log probability of each token that was written, from the scores [B, V] of each step."""
    columns = []
    for step, scores_BV in enumerate(scores):
        log_probs_BV = scores_BV.float().cpu().log_softmax(-1)
        columns.append(log_probs_BV.gather(1, tokens_BU[:, step : step + 1]))
    return torch.cat(columns, dim=1)


def _geometric_mean(probabilities: Sequence[float]) -> float:
    if not probabilities:
        return 0.0
    # A probability may be rounded to 0.
    logarithms = [math.log(max(probability, 1e-30)) for probability in probabilities]
    return math.exp(sum(logarithms) / len(logarithms))
