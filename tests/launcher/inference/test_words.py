"""Words of hypotheses: together they are the text, whatever the tokenizer and the search."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.text.tokenizer import TokenizerConfig, train_tokenizer
from launcher.inference.transcripts import SegmentTranscript, joined_transcript, transcript
from launcher.inference.words import Word, hypothesis_words, joined_text, with_all_times
from model.search import Hypothesis

TEXTS = {
    "ru": ["да нет привет как дела", "это слово и ещё одно слово", "аэлита инженер лось"] * 20,
    "zh": ["今天天气很好", "你好世界 abc", "hello 世界"] * 20,
}
TOKENIZERS = {
    "characters": ("ru", TokenizerConfig()),
    "pieces of words": ("ru", TokenizerConfig(kind="bpe", pieces=40)),
    "unigram": ("ru", TokenizerConfig(kind="unigram", pieces=26)),
    "Chinese characters": ("zh", TokenizerConfig()),
    "Chinese pieces": ("zh", TokenizerConfig(kind="bpe", pieces=24)),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {
        name: train_tokenizer(TEXTS[language], config, tmp_path_factory.mktemp("tokenizer"))
        for name, (language, config) in TOKENIZERS.items()
    }


def hypothesis_of(tokens: list[int]) -> Hypothesis:
    places = list(range(len(tokens)))
    confidences = [0.5 + 0.001 * place for place in places]
    return Hypothesis(tokens, places, 0.0, confidences, None, [place + 1 for place in places])


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), name=st.sampled_from(list(TOKENIZERS)))
def test_the_words_are_the_text_and_each_token_is_in_one_of_them(tokenizers, seed, name):
    """ "".join(words) == text without spaces; with spaces too where words are written with them."""
    tokenizer = tokenizers[name]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(1, tokenizer.vocabulary_size, (seed % 9,), generator=generator).tolist()
    tokens = [token for token in drawn if token not in (2, 3)]
    words = hypothesis_words(hypothesis_of(tokens), tokenizer, 0.04)
    text = tokenizer.decode(tokens)
    assert "".join(word.text for word in words) == "".join(text.split())
    if TOKENIZERS[name][0] == "ru":
        assert [word.text for word in words] == text.split()
    if words:
        assert [word.first for word in words[1:]] == [word.stop for word in words[:-1]]
        assert (words[0].first, words[-1].stop) == (0, len(tokens))
        assert all(0 <= word.start_s < word.end_s for word in words)
        starts = [word.start_s for word in words]
        assert starts == sorted(starts)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), name=st.sampled_from(list(TOKENIZERS)))
def test_a_transcript_is_its_words_with_one_space_between_them_also_where_a_space_was_written_twice(
    tokenizers, seed, name
):
    """joined_text(words) == text, for whole recordings and for segments."""
    tokenizer = tokenizers[name]
    generator = torch.Generator().manual_seed(seed)
    pieces = list(range(4, tokenizer.vocabulary_size))
    drawn = torch.randint(0, len(pieces), (1 + seed % 12,), generator=generator).tolist()
    spaces = tokenizer.encode("да нет")[2:3] * (seed % 3)
    hypothesis = hypothesis_of([*(pieces[place] for place in drawn), *spaces, pieces[0]])
    row = transcript([hypothesis], tokenizer, 0.04, 9.0)
    words = hypothesis_words(hypothesis, tokenizer, 0.04)
    segment = SegmentTranscript(0.0, 9.0, 0.0, [hypothesis], words=words)
    for result in (row, joined_transcript([segment], tokenizer, 0.04, 9.0)):
        assert "  " not in result["text"]
        assert result["n_best"][0]["text"] == result["text"]
        if TOKENIZERS[name][0] == "ru":
            assert " ".join(word["word"] for word in result["n_best"][0]["words"]) == result["text"]


def test_a_space_is_no_part_of_a_words_time_and_the_least_certain_token_is_the_words_confidence(tokenizers):
    tokenizer = tokenizers["characters"]
    tokens = tokenizer.encode("да нет")
    hypothesis = Hypothesis(
        tokens, [2, 3, 5, 9, 10, 11], 0.0, [0.9, 0.8, 0.1, 0.7, 0.3, 0.6], None, [3, 4, 6, 10, 11, 20]
    )
    yes, no = hypothesis_words(hypothesis, tokenizer, 0.04, seconds=0.7)
    assert (yes.text, yes.start_s, yes.end_s, yes.confidence) == ("да", 0.08, 0.16, 0.8)
    # The last frame ends behind the recording.
    assert (no.text, no.start_s, no.end_s, no.confidence) == ("нет", 0.36, 0.7, 0.3)


def test_words_that_do_not_fit_into_the_frames_have_no_times_and_get_some_between_their_neighbours(tokenizers):
    tokenizer = tokenizers["characters"]
    tokens = tokenizer.encode("да нет")
    words = hypothesis_words(Hypothesis(tokens, [], 0.0, [0.5] * 6), tokenizer, 0.04)
    assert [(word.start_s, word.end_s) for word in words] == [(None, None)] * 2
    known = Word("и", 2.0, 3.0, 0.5, 0, 1)
    timed = with_all_times([*words, known, words[0]], 0.0, 4.0)
    assert [(word.start_s, word.end_s) for word in timed] == [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["да", "нет"], "да нет"),
        (["", "да", "", "нет", ""], "да нет"),
        (["今天", "天气"], "今天天气"),
        (["今天", "abc"], "今天 abc"),
        (["สวัสดี", "ครับ"], "สวัสดีครับ"),
        (["안녕", "세계"], "안녕 세계"),
        ([], ""),
    ],
)
def test_segments_are_joined_as_their_script_is_written(texts, joined):
    assert joined_text(texts) == joined
