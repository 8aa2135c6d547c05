"""SentencePiece tokenizers."""

import logging
import re
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from phrases import phrase_rows
from pydantic import ValidationError

from data.errors import DataError
from data.text.tokenizer import UNKNOWN, Tokenizer, TokenizerConfig, token_lengths, train_tokenizer

KINDS = [
    TokenizerConfig(kind="char"),
    TokenizerConfig(kind="unigram", pieces=120),
    TokenizerConfig(kind="bpe", pieces=120),
]
ALPHABET = "abcdeё中,."


@cache
def phrases():
    return [row["text"] for row in phrase_rows()]


@cache
def alphabet_tokenizer():
    with TemporaryDirectory() as folder:
        return train_tokenizer([f"{ALPHABET} {ALPHABET}"], TokenizerConfig(), Path(folder))


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_real_transcripts_come_back_as_they_were(config, tmp_path):
    tokenizer = train_tokenizer(phrases(), config, tmp_path)
    assert [tokenizer.decode(tokenizer.encode(text)) for text in phrases()] == phrases()


@pytest.mark.parametrize("config", KINDS, ids=lambda config: config.kind)
def test_the_same_texts_give_the_same_bytes_and_loading_gives_the_same_ids(config, tmp_path):
    first = train_tokenizer(phrases(), config, tmp_path / "first")
    train_tokenizer(phrases(), config, tmp_path / "again")
    for name in ("tokenizer.model", "tokenizer.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    loaded = Tokenizer.load(tmp_path / "again")
    assert loaded.encode_all(phrases()) == [first.encode(text) for text in phrases()]
    assert (loaded.kind, loaded.sha256) == (config.kind, first.sha256)


def test_a_character_vocabulary_is_what_the_texts_need_and_one_token_is_one_character(tmp_path):
    tokenizer = train_tokenizer(phrases(), TokenizerConfig(), tmp_path)
    assert tokenizer.vocabulary_size == 4 + len(set("".join(phrases())))
    assert all(len(tokenizer.encode(text)) == len(text) for text in phrases())


def test_pieces_give_a_vocabulary_of_the_size_asked_for(tmp_path):
    assert train_tokenizer(phrases(), KINDS[1], tmp_path).vocabulary_size == 120


@given(st.text(alphabet=f"{ALPHABET} ").map(lambda text: " ".join(text.split())))
def test_any_text_of_known_characters_comes_back(text):
    tokenizer = alphabet_tokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_case_and_composed_characters_are_not_touched(tmp_path):
    text = "Ёж ё ﬁ ½ Ａ"
    tokenizer = train_tokenizer([text], TokenizerConfig(), tmp_path)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_transcripts_of_any_length_take_part_in_training(tmp_path):
    # SentencePiece leaves out texts above 4192 bytes unless it is told otherwise.
    tokenizer = train_tokenizer(["ab", "c" * 10_000], TokenizerConfig(), tmp_path)
    assert UNKNOWN not in tokenizer.encode("abc")


def test_blank_begin_and_end_are_not_written():
    tokenizer = alphabet_tokenizer()
    assert tokenizer.decode([2, 0, *tokenizer.encode("abba"), 0, 3]) == "abba"


def test_training_is_silent(tmp_path, capfd):
    train_tokenizer(phrases(), KINDS[1], tmp_path)
    assert capfd.readouterr() == ("", "")


# --- lengths ------------------------------------------------------------------------------------------


def test_each_pair_of_equal_neighbours_costs_ctc_one_frame_more():
    texts = ["abc", "aab", "", "bbb", "b"]
    tokens, min_frames = token_lengths(texts, alphabet_tokenizer())
    assert tokens.tolist() == [3, 3, 0, 3, 1]
    # The last character of one text and the first of the next are no neighbours.
    assert min_frames.tolist() == [3, 4, 0, 5, 1]
    assert tokens.dtype == min_frames.dtype == "int32"


def test_lengths_of_more_transcripts_than_fit_one_call_are_those_of_each():
    texts = [ALPHABET[: 1 + number % 9] for number in range(25_000)]
    tokens, min_frames = token_lengths(iter(texts), alphabet_tokenizer())
    assert tokens.tolist() == min_frames.tolist() == [len(text) for text in texts]


def test_unknown_characters_are_counted_and_logged(caplog):
    with caplog.at_level(logging.WARNING):
        tokens, _ = token_lengths(["ab", "aXb", "XaY"], alphabet_tokenizer())
    assert tokens.tolist() == [2, 3, 3]
    assert "3 tokens in 2 of 3 transcripts are unknown" in caplog.text


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("texts", [["привет мир"] * 5, ["hello world, how are you", "мир"]])
def test_more_pieces_than_the_texts_give_are_refused_with_the_number_they_give(tmp_path, kind, texts):
    with pytest.raises(DataError, match=rf"{kind} tokenizer of 5000 pieces: they have at most \d+") as refusal:
        train_tokenizer(texts, TokenizerConfig(kind=kind, pieces=5000), tmp_path)
    message = str(refusal.value)
    assert f"{len(texts)} sentences of {len(set(''.join(texts)))} distinct characters" in message
    largest = int(re.search(r"Set tokenizer.pieces to (\d+) or less", message)[1])
    assert train_tokenizer(texts, TokenizerConfig(kind=kind, pieces=largest), tmp_path).vocabulary_size == largest


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_fewer_pieces_than_characters_are_refused_with_the_number_they_need(tmp_path, kind):
    texts = ["the quick brown fox jumps over the lazy dog", "съешь ещё этих мягких французских булок"]
    with pytest.raises(DataError, match=rf"{kind} tokenizer of 20 pieces: they have 2 sentences of 52 dis") as refusal:
        train_tokenizer(texts, TokenizerConfig(kind=kind, pieces=20), tmp_path)
    smallest = int(re.search(r"Set tokenizer.pieces to (\d+) or more", str(refusal.value))[1])
    assert train_tokenizer(texts, TokenizerConfig(kind=kind, pieces=smallest), tmp_path).vocabulary_size == smallest


@pytest.mark.parametrize("kind", ["char", "unigram", "bpe"])
@pytest.mark.parametrize("texts", [[], ["", ""], [" "], ["a"], ["ab", "ba"]])
def test_a_refusal_is_one_paragraph_about_keys_of_a_recipe(tmp_path, kind, texts):
    if kind == "char" and "".join(texts).strip():
        assert train_tokenizer(texts, TokenizerConfig(kind=kind), tmp_path).vocabulary_size > 4
        return
    with pytest.raises(DataError, match=r"tokenizer\.kind to char|hold text") as refusal:
        train_tokenizer(texts, TokenizerConfig(kind=kind), tmp_path)
    for word in ("\n", "character_coverage", "vocab_size", "INTERNAL", ".cc"):
        assert word not in str(refusal.value)


def test_a_changed_or_missing_model_is_refused(tmp_path):
    train_tokenizer(phrases(), TokenizerConfig(), tmp_path)
    model = tmp_path / "tokenizer.model"
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="SHA-256"):
        Tokenizer.load(tmp_path)
    model.unlink()
    with pytest.raises(DataError, match=r"No tokenizer can be read from .*tokenizer\.model"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("kind", ["char", "unigram", "bpe"])
def test_too_few_pieces_for_bytes_and_symbols_are_refused_with_the_number_that_is_needed(tmp_path, kind):
    options = {"kind": kind, "byte_fallback": True, "user_symbols": ("<laugh>", "⟨cough⟩")}
    config = TokenizerConfig(pieces=50, **options)
    if kind == "char":
        # Characters take what they need.
        assert train_tokenizer(phrases(), config, tmp_path).vocabulary_size > 260
        return
    with pytest.raises(DataError, match="beside 4 fixed ones and 256 of bytes and 2 user symbols") as refusal:
        train_tokenizer(phrases(), config, tmp_path)
    smallest = int(re.search(r"Set tokenizer.pieces to (\d+) or more", str(refusal.value))[1])
    config = TokenizerConfig(pieces=smallest, **options)
    assert train_tokenizer(phrases(), config, tmp_path).vocabulary_size == smallest


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"user_symbols": ("a b",)}, "no space"),
        ({"user_symbols": ("",)}, "1 to 100 characters"),
        ({"user_symbols": ("x" * 101,)}, "1 to 100 characters"),
        ({"user_symbols": ("<unk>",)}, "piece of every tokenizer"),
        ({"user_symbols": ("<0x41>",)}, "piece of every tokenizer"),
        ({"user_symbols": ("ha", "ha")}, "twice"),
        ({"character_coverage": 0.5}, "greater than or equal to 0.98"),
        ({"model": "a.model", "byte_fallback": True}, "a given model has its own"),
        ({"model": "a.model", "user_symbols": ("ha",)}, "a given model has its own"),
    ],
)
def test_settings_that_make_no_tokenizer_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        TokenizerConfig(**settings)


# --- bytes, symbols, rare characters --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["char", "unigram", "bpe"])
def test_with_byte_fallback_any_text_comes_back_and_nothing_is_unknown(tmp_path, kind):
    tokenizer = train_tokenizer(phrases(), TokenizerConfig(kind=kind, pieces=400, byte_fallback=True), tmp_path)
    for text in ["日本語", "naïve Ωmega", "🙂", *phrases()[:3]]:
        tokens = tokenizer.encode(text)
        assert UNKNOWN not in tokens
        assert tokenizer.decode(tokens) == text
    # A character of three bytes is three tokens, of which CTC has to write each.
    assert len(tokenizer.encode("日本")) - len(tokenizer.encode("")) in (6, 7)


@pytest.mark.parametrize("kind", ["char", "unigram", "bpe"])
def test_a_user_symbol_is_one_piece_wherever_it_stands(tmp_path, kind):
    config = TokenizerConfig(kind=kind, pieces=120, user_symbols=("<laugh>", "a,b"))
    tokenizer = train_tokenizer(phrases(), config, tmp_path)
    pieces = tokenizer.pieces
    symbol = pieces.index("<laugh>")
    for text in ["<laugh>", "он<laugh>он", "он <laugh>", "a,b он"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("он<laugh>он").count(symbol) == 1
    assert tokenizer.encode("a,b").count(pieces.index("a,b")) == 1


def test_a_character_vocabulary_holds_all_of_chinese_and_leaves_out_the_rarest_where_it_is_told(tmp_path):
    han = [chr(0x4E00 + number) for number in range(3000)]
    # By Zipf's law, as in any language.
    texts = ["".join(han[: 3000 // rank]) for rank in range(1, 400)]
    whole = train_tokenizer(texts, TokenizerConfig(pieces=100), tmp_path / "whole")
    assert whole.vocabulary_size == 4 + 3000
    assert len(whole.encode(texts[0])) == 3000

    frequent = train_tokenizer(texts, TokenizerConfig(character_coverage=0.98), tmp_path / "frequent")
    assert 1000 < frequent.vocabulary_size < 3000
    assert UNKNOWN in frequent.encode(han[-1])
    assert not TokenizerConfig(character_coverage=0.98).knows_training_texts
    config = TokenizerConfig(character_coverage=0.98, byte_fallback=True)
    with_bytes = train_tokenizer(texts, config, tmp_path / "bytes")
    assert with_bytes.vocabulary_size == frequent.vocabulary_size + 256
    assert with_bytes.decode(with_bytes.encode(texts[0])) == texts[0]
    assert config.knows_training_texts


def test_new_settings_at_their_defaults_give_the_bytes_that_they_gave_before(tmp_path):
    explicit = TokenizerConfig(kind="bpe", pieces=120, byte_fallback=False, user_symbols=(), character_coverage=1.0)
    first = train_tokenizer(phrases(), explicit, tmp_path / "explicit")
    assert first.sha256 == train_tokenizer(phrases(), KINDS[2], tmp_path / "default").sha256
