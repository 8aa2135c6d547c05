"""A search as a recipe describes it, applied to what a recogniser gives: its files read, its scorers built."""

from collections.abc import Callable

import torch
from torch import Tensor

from data.errors import DataError
from data.files import check_regular, read_bounded
from data.text.language_model import read_tokenizer_hash
from data.text.tokenizer import UNKNOWN, Tokenizer
from launcher.errors import ConfigError
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
# Phrases of a person; hundreds of thousands of them.
MAX_HOTWORDS_BYTES = 2**24


class Search:
    """Finds the texts of a batch that a recogniser has encoded."""

    def __init__(
        self,
        config: SearchConfig,
        recognizer: Recognizer,
        tokenizer: Tokenizer,
        name: str = "the model",
    ):
        """ConfigError when the model called `name` lacks what the search needs, DataError when a file of the search is
        missing or of no use."""
        check_search_model(config, recognizer.config, name)
        check_search_files(config, "search")
        self.config = config
        self.recognizer = recognizer
        # A prefix beam search calls it every few frames.
        self.on_progress: Callable[[], None] = lambda: None
        self.fusion = None
        # A greedy search takes the best token of each frame: nothing else is added to its scores.
        if isinstance(config, GreedyConfig | TransducerSearchConfig):
            return
        scorers = []
        if config.language_model:
            language_model = read_scorer(config.language_model, tokenizer)
            scorers.append((language_model, config.language_model.weight))
        if config.hotwords:
            # Their weight is the bonus.
            hotwords = read_hotwords(config.hotwords, tokenizer)
            scorers.append((hotwords, 1.0))
        if scorers or config.length_bonus:
            self.fusion = Fusion(tokenizer.vocabulary_size, scorers, config.length_bonus)

    @torch.inference_mode()
    def __call__(self, output: RecognizerOutput) -> list[list[Hypothesis]]:
        """The texts of each utterance, best first; one, or as many as `n_best` asks for."""
        config = self.config
        logits_BSV = output.ctc_BSV
        frames_BSD = output.encoder.frames_BSD
        lengths_B = output.encoder.lengths_B

        if isinstance(config, GreedyConfig):
            return [[hypothesis] for hypothesis in greedy(logits_BSV, lengths_B)]
        if isinstance(config, TransducerSearchConfig):
            transducer = self.recognizer.transducer
            assert transducer is not None
            texts = transducer_greedy(transducer, frames_BSD, lengths_B, config.symbols_per_frame)
            return [[hypothesis] for hypothesis in texts]
        if isinstance(config, PrefixBeamConfig):
            return self._prefix_beam(logits_BSV, lengths_B, config, config.n_best)
        if isinstance(config, RescoringConfig):
            # The decoder chooses among the whole beam: the best text may lie behind the `n_best` of CTC.
            hypotheses = self._prefix_beam(logits_BSV, lengths_B, config, config.beam)
            rescored = rescore(
                self.recognizer,
                frames_BSD,
                lengths_B,
                hypotheses,
                config.ctc_weight,
                config.reverse_weight,
            )
            return [texts[: config.n_best] for texts in rescored]

        decoder = self.recognizer.decoder
        assert decoder is not None
        if isinstance(config, JointConfig):
            options = _attention_options(config, config.ctc_weight)
            return joint(
                decoder,
                frames_BSD,
                logits_BSV,
                lengths_B,
                options,
                config.n_best,
                self.fusion,
            )
        options = _attention_options(config, ctc_weight=0.0)
        hypotheses = attention_beam(
            decoder,
            frames_BSD,
            lengths_B,
            options,
            config.n_best,
            self.fusion,
        )
        # The decoder knows no times: they are those of CTC.
        return with_times(hypotheses, logits_BSV, lengths_B)

    def _prefix_beam(
        self,
        logits_BSV: Tensor,
        lengths_B: Tensor,
        config: PrefixBeamConfig | RescoringConfig,
        n_best: int,
    ) -> list[list[Hypothesis]]:
        batch, num_frames, _ = logits_BSV.shape
        search = PrefixBeamSearch(batch, config.beam, config.candidates, self.fusion)
        # In pieces, which change nothing, so that a long search is seen to get on.
        for start in range(0, num_frames, FRAMES_AT_ONCE):
            self.on_progress()
            piece_BSV = logits_BSV[:, start : start + FRAMES_AT_ONCE]
            piece_frames = piece_BSV.shape[1]
            piece_lengths_B = (lengths_B - start).clamp(0, piece_frames)
            search.advance(piece_BSV, piece_lengths_B)
        return search.finish(n_best)


def _attention_options(config: AttentionBeamConfig, ctc_weight: float) -> AttentionOptions:
    return AttentionOptions(
        beam=config.beam,
        candidates=config.candidates,
        length_power=config.length_power,
        ctc_weight=ctc_weight,
    )


def read_scorer(
    config: LanguageModelConfig,
    tokenizer: Tokenizer,
) -> TokenLanguageModel | WordLanguageModel:
    """The language model of a search. Raises DataError when its file is none, or knows none of the tokens, and
    ConfigError where it is yet to be made."""
    if config.path is None:
        raise ConfigError(
            f"The language model of the search has no file, and one of order {config.order} is made only in a run, by "
            "an evaluation of its recipe. Make one with `chorus language-model RUN --order N --out FILE`, and name it "
            "with --language-model FILE."
        )
    try:
        check_regular(config.path)
        model = read_language_model(config.path)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            f"The language model of the search cannot be read: {error}. Give an ARPA file or a KenLM binary."
        ) from None
    pieces = tokenizer.pieces
    if config.unit == "word":
        return WordLanguageModel(model, pieces)

    # Every model of words knows the start and the end of a sentence too.
    tokens = set(pieces[UNKNOWN + 1 :]) - {"<s>", "</s>"}
    if not any(model.knows(token) for token in tokens):
        raise DataError(
            f"The language model {config.path} knows none of the tokenizer's tokens. If it is one of words, set "
            "language_model.unit to word; if it is one of tokens, it must be made with this tokenizer."
        )
    recorded = read_tokenizer_hash(config.path)
    if recorded is not None and recorded != tokenizer.sha256:
        raise DataError(
            f"The language model {config.path} was made with another tokenizer than the model's: SHA-256 "
            f"{recorded[:12]}, here {tokenizer.sha256[:12]}. Its pieces would be scored as words that they are not. "
            "Make it again with `chorus language-model ... --unit token --tokenizer MODEL/tokenizer`."
        )
    return TokenLanguageModel(model, pieces)


def read_hotwords(config: HotwordsConfig, tokenizer: Tokenizer) -> Hotwords:
    """The phrases of the recipe and of the file that it names.

    Raises DataError when the file is no text or is empty, and when a phrase cannot be written with the tokens.
    """
    phrases = list(config.phrases)
    if config.path:
        try:
            # Editors may put a byte order mark before the first phrase, which is no part of it.
            text = read_bounded(config.path, MAX_HOTWORDS_BYTES).decode("utf-8-sig")
        except (OSError, ValueError) as error:
            raise DataError(
                f"The hotwords in {config.path} cannot be read as UTF-8 text: {error}. Save it so."
            ) from None
        # Spaces between words as in transcripts: one.
        lines = [" ".join(line.split()) for line in text.splitlines()]
        phrases_of_file = [line for line in lines if line]
        if not phrases_of_file:
            raise DataError(
                f"The file of hotwords {config.path} has no phrase in it. Write one a line, or leave the option out."
            )
        phrases += phrases_of_file

    phrases_as_tokens = []
    for phrase in phrases:
        tokens = tokenizer.encode(phrase)
        if not tokens or UNKNOWN in tokens:
            raise DataError(
                f"The hotword {phrase!r} cannot be written with the model's tokens: the transcripts that the tokenizer "
                "was trained on lack one of its characters. Spell it as transcripts do, or leave it out."
            )
        phrases_as_tokens.append(tokens)
    return Hotwords(phrases_as_tokens, tokenizer.pieces, config.bonus)
