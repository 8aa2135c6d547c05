"""A search as a recipe describes it, applied to what a recogniser gives: its files read, its scorers built."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from data.errors import DataError
from data.tokenizer import UNKNOWN, Tokenizer
from launcher.recipe.search import (
    AttentionBeamConfig,
    GreedyConfig,
    HotwordsConfig,
    JointConfig,
    LanguageModelConfig,
    PrefixBeamConfig,
    RescoringConfig,
    SearchConfig,
    TransducerSearchConfig,
    check_search_files,
    check_search_model,
)
from model.recognizer import Recognizer, RecognizerOutput
from model.search import (
    AttentionOptions,
    Fusion,
    Hotwords,
    Hypothesis,
    PrefixBeamSearch,
    TokenLanguageModel,
    WordLanguageModel,
    attention_beam,
    greedy,
    joint,
    read_language_model,
    rescore,
    transducer_greedy,
    with_times,
)

FRAMES_AT_ONCE = 100


class Search:
    """Finds the texts of a batch that a recogniser has encoded."""

    def __init__(self, config: SearchConfig, recognizer: Recognizer, tokenizer: Tokenizer, name: str = "the model"):
        """ConfigError when the model called `name` lacks what the search needs, DataError when a file of the search is
        missing or of no use."""
        check_search_model(config, recognizer.config, name)
        check_search_files(config, "search")
        self.config, self.recognizer = config, recognizer
        # A prefix beam search calls it every few frames.
        self.on_progress: Callable[[], None] = lambda: None
        unaided = isinstance(config, GreedyConfig | TransducerSearchConfig)
        self.fusion = None if unaided else _fusion(config, tokenizer)

    @torch.inference_mode()
    def __call__(self, output: RecognizerOutput) -> list[list[Hypothesis]]:
        """The texts of each utterance, best first; one, or as many as `n_best` asks for."""
        config, logits_BSV, lengths_B = self.config, output.ctc_BSV, output.encoder.lengths_B
        if isinstance(config, GreedyConfig):
            return [[hypothesis] for hypothesis in greedy(logits_BSV, lengths_B)]
        if isinstance(config, TransducerSearchConfig):
            return self._transducer(output, config.symbols_per_frame)
        if isinstance(config, PrefixBeamConfig):
            return self._prefix_beam(logits_BSV, lengths_B, config, config.n_best)
        frames_BSD, decoder = output.encoder.frames_BSD, self.recognizer.decoder
        assert decoder is not None
        if isinstance(config, RescoringConfig):
            hypotheses = self._prefix_beam(logits_BSV, lengths_B, config, config.beam)
            weights = config.ctc_weight, config.reverse_weight
            hypotheses = rescore(self.recognizer, frames_BSD, lengths_B, hypotheses, *weights)
            return [texts[: config.n_best] for texts in hypotheses]
        options = _attention_options(config)
        if isinstance(config, JointConfig):
            return joint(decoder, frames_BSD, logits_BSV, lengths_B, options, config.n_best, self.fusion)
        hypotheses = attention_beam(decoder, frames_BSD, lengths_B, options, config.n_best, self.fusion)
        return with_times(hypotheses, logits_BSV, lengths_B)

    def _prefix_beam(
        self, logits_BSV: Tensor, lengths_B: Tensor, config: PrefixBeamConfig | RescoringConfig, n_best: int
    ) -> list[list[Hypothesis]]:
        # In pieces, which change nothing, so that a long search is seen to get on.
        search = PrefixBeamSearch(len(logits_BSV), config.beam, config.candidates, self.fusion)
        for start in range(0, logits_BSV.shape[1], FRAMES_AT_ONCE):
            self.on_progress()
            piece_BSV = logits_BSV[:, start : start + FRAMES_AT_ONCE]
            search.advance(piece_BSV, (lengths_B - start).clamp(0, piece_BSV.shape[1]))
        return search.finish(n_best)

    def _transducer(self, output: RecognizerOutput, symbols_per_frame: int) -> list[list[Hypothesis]]:
        transducer, encoder = self.recognizer.transducer, output.encoder
        assert transducer is not None
        hypotheses = transducer_greedy(transducer, encoder.frames_BSD, encoder.lengths_B, symbols_per_frame)
        return [[hypothesis] for hypothesis in hypotheses]


def _attention_options(config: AttentionBeamConfig) -> AttentionOptions:
    ctc_weight = config.ctc_weight if isinstance(config, JointConfig) else 0.0
    return AttentionOptions(config.beam, config.candidates, config.length_power, ctc_weight)


def _fusion(config: PrefixBeamConfig | AttentionBeamConfig | RescoringConfig, tokenizer: Tokenizer) -> Fusion | None:
    scorers = []
    if config.language_model:
        scorers.append((_language_model(config.language_model, tokenizer), config.language_model.weight))
    if config.hotwords:
        scorers.append((_hotwords(config.hotwords, tokenizer), 1.0))
    if not scorers and not config.length_bonus:
        return None
    return Fusion(tokenizer.vocabulary_size, scorers, config.length_bonus)


def _language_model(config: LanguageModelConfig, tokenizer: Tokenizer) -> TokenLanguageModel | WordLanguageModel:
    try:
        model = read_language_model(config.path)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"The language model of the search cannot be read: {error}. Give an ARPA file or a KenLM binary."
        ) from None
    pieces = tokenizer.pieces
    if config.unit == "word":
        return WordLanguageModel(model, pieces)
    if not any(model.knows(piece) for piece in pieces[UNKNOWN + 1 :] if piece not in ("<s>", "</s>")):
        raise DataError(
            f"The language model {config.path} knows none of the tokenizer's tokens. If it is one of words, set "
            "language_model.unit to word; if it is one of tokens, it must be made with this tokenizer."
        )
    return TokenLanguageModel(model, pieces)


def _hotwords(config: HotwordsConfig, tokenizer: Tokenizer) -> Hotwords:
    phrases = [*config.phrases, *(_lines(config.path) if config.path else ())]
    tokens = [tokenizer.encode(phrase) for phrase in phrases]
    for phrase, ids in zip(phrases, tokens, strict=True):
        if not ids or UNKNOWN in ids:
            raise DataError(
                f"The hotword {phrase!r} cannot be written with the model's tokens: the transcripts that the tokenizer "
                "was trained on lack one of its characters. Spell it as transcripts do, or leave it out."
            )
    return Hotwords(tokens, tokenizer.pieces, config.bonus)


def _lines(path: Path) -> list[str]:
    try:
        # Editors may put a byte order mark before the first phrase, which is no part of it.
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The hotwords in {path} cannot be read as UTF-8 text: {error}.") from None
    phrases = []
    for line in text.splitlines():
        phrase = " ".join(line.split())
        if phrase:
            phrases.append(phrase)
    if not phrases:
        raise DataError(f"The file of hotwords {path} has no phrase in it. Write one a line, or leave the option out.")
    return phrases
