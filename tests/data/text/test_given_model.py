"""Models of SentencePiece from elsewhere."""

import io

import pytest
import sentencepiece
from phrases import phrase_rows
from sentencepiece import sentencepiece_model_pb2

from data.errors import DataError
from data.text.given_model import read_given_model
from data.text.tokenizer import BEGIN, BLANK, END, UNKNOWN, Tokenizer, TokenizerConfig, train_tokenizer

LAYOUTS = {
    "default": {},
    "no begin and end": {"bos_id": -1, "eos_id": -1},
    "padding last of the first": {"pad_id": 3},
    "as here": {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "pad_piece": "<blank>"},
    "other names": {
        "unk_piece": "[UNK]",
        "bos_piece": "[CLS]",
        "eos_piece": "[SEP]",
        "pad_id": 3,
        "pad_piece": "[PAD]",
    },
    "symbols": {"user_defined_symbols": ["<laugh>"], "control_symbols": ["<en>"]},
    "bytes": {"byte_fallback": True, "vocab_size": 400},
    "normalised": {"normalization_rule_name": "nmt_nfkc_cf"},
}


def phrases():
    return [row["text"] for row in phrase_rows()]


def train_elsewhere(path, **options):
    model = io.BytesIO()
    options = {"model_type": "bpe", "vocab_size": 120, "minloglevel": 2, **options}
    sentencepiece.SentencePieceTrainer.Train(sentence_iterator=iter(phrases()), model_writer=model, **options)
    path.write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.getvalue())
    return processor


def adopt(tmp_path, path):
    return train_tokenizer([], TokenizerConfig(model=path), tmp_path / "adopted")


@pytest.mark.parametrize(
    ("kind", "layout"),
    [*[("bpe", layout) for layout in LAYOUTS], ("unigram", "default"), ("unigram", "symbols"), ("char", "bytes")],
)
def test_a_given_model_cuts_texts_as_before_and_has_the_fixed_ids(tmp_path, kind, layout):
    options = LAYOUTS[layout] if kind != "char" else {"use_all_vocab": True, "vocab_size": 400, **LAYOUTS[layout]}
    processor = train_elsewhere(tmp_path / "given.model", model_type=kind, **options)
    tokenizer = adopt(tmp_path, tmp_path / "given.model")
    assert tokenizer.kind == kind
    pieces = tokenizer.pieces
    assert (pieces[BLANK], pieces[BEGIN], pieces[END]) == ("<blank>", "<s>", "</s>")
    for text in [*phrases(), "Ünknøwn 日 <laugh>"]:
        tokens = tokenizer.encode(text)
        expected = processor.encode(text, out_type=int)
        assert [token == UNKNOWN for token in tokens] == [token == processor.unk_id() for token in expected]
        known = [pieces[token] for token in tokens if token != UNKNOWN]
        assert known == [processor.id_to_piece(token) for token in expected if token != processor.unk_id()]
        assert tokenizer.decode(tokens) == processor.decode(expected)
        assert not {BLANK, BEGIN, END} & set(tokens)
    loaded = Tokenizer.load(tmp_path / "adopted")
    assert loaded.sha256 == tokenizer.sha256
    assert loaded.encode(phrases()[0]) == tokenizer.encode(phrases()[0])


def test_a_model_of_this_project_is_taken_with_its_ids(tmp_path):
    own = train_tokenizer(phrases(), TokenizerConfig(kind="bpe", pieces=120), tmp_path / "own")
    adopted = adopt(tmp_path, tmp_path / "own" / "tokenizer.model")
    assert adopted.pieces == own.pieces
    assert adopted.encode_all(phrases()) == own.encode_all(phrases())


def write_proto(path, change):
    train_elsewhere(path)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(path.read_bytes())
    change(proto)
    path.write_bytes(proto.SerializeToString())


def rename_a_piece(proto):
    proto.pieces[50].piece = "<blank>"


def make_words(proto):
    proto.trainer_spec.model_type = 3


def remove_unknown(proto):
    del proto.pieces[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_a_piece, "piece 50 is called <blank>"),
        (make_words, "a model of whole words"),
        (remove_unknown, "0 for what is unknown"),
        (lambda proto: proto.pieces.extend([proto.pieces[0]]), "2 for what is unknown"),
    ],
)
def test_a_model_that_cannot_be_a_tokenizer_here_is_refused(tmp_path, change, message):
    write_proto(tmp_path / "given.model", change)
    with pytest.raises(DataError, match=message) as refusal:
        adopt(tmp_path, tmp_path / "given.model")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"hello\t0\n", b"\x00" * 100, b"\xff" * 1000])
def test_a_file_that_is_no_model_is_refused(tmp_path, content):
    (tmp_path / "given.model").write_bytes(content)
    with pytest.raises(DataError, match=r"tokenizer\.model is .*given\.model, which (is no model|has 0 pieces)"):
        adopt(tmp_path, tmp_path / "given.model")


def test_a_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        adopt(tmp_path, tmp_path / "absent.model")


def test_a_model_of_millions_of_pieces_is_refused_before_they_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("data.text.given_model.MAX_PIECES", 1000)
    path = tmp_path / "many.model"
    # A piece of field 1 without content takes two bytes.
    path.write_bytes(b"\x0a\x00" * 1001)
    with pytest.raises(DataError, match="has 1001 pieces; a tokenizer has 1000 at most"):
        read_given_model(path)
