"""A tokenizer that is not the one that a checkpoint, a teacher or a language model was made with."""

import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.errors import DataError
from data.text.language_model import read_tokenizer_hash, write_language_model, write_tokenizer_hash
from data.text.tokenizer import TokenizerConfig, train_tokenizer
from launcher.errors import CheckpointError, ConfigError
from launcher.inference.search import read_scorer
from launcher.recipe.search import LanguageModelConfig
from launcher.training import initialization, training_state
from launcher.training.health.nonfinite_steps import NonfiniteSteps
from launcher.training.initialization import initialize_from_first_teacher
from launcher.training.metrics import MetricAccumulator
from launcher.training.training_state import capture_state, check_tokenizer

TEXTS = ["abc cab", "bca acb"]


def make_tokenizer(texts):
    with tempfile.TemporaryDirectory() as folder:
        return train_tokenizer(texts, TokenizerConfig(), Path(folder))


# As many tokens, and others.
TOKENIZER = make_tokenizer(TEXTS)
OTHER = make_tokenizer(["abd dab"])
assert OTHER.vocabulary_size == TOKENIZER.vocabulary_size


def saved_with(tokenizer, monkeypatch):
    """What a checkpoint holds of a training with a tokenizer."""
    monkeypatch.setattr(training_state, "owned_fragments", lambda engine: [])
    monkeypatch.setattr(training_state, "full_shapes", lambda module: {})
    engine = SimpleNamespace(module=torch.nn.Linear(1, 1))
    state = capture_state(engine, 3, MetricAccumulator(), NonfiniteSteps(), None, tokenizer)
    return SimpleNamespace(folder=Path("run/teacher/step-3"), trainer=state.trainer)


def test_a_checkpoint_of_another_tokenizer_is_refused(monkeypatch):
    saved = saved_with(TOKENIZER, monkeypatch)
    check_tokenizer(saved, TOKENIZER)
    with pytest.raises(CheckpointError, match=f"another tokenizer.*{OTHER.sha256[:12]}.*--set-aside") as refusal:
        check_tokenizer(saved, OTHER)
    assert "\n" not in str(refusal.value)


def test_checkpoints_of_earlier_versions_and_of_encoders_alone_name_no_tokenizer(monkeypatch):
    saved = saved_with(None, monkeypatch)
    assert "tokenizer" not in saved.trainer
    check_tokenizer(saved, OTHER)
    check_tokenizer(saved_with(TOKENIZER, monkeypatch), None)


def test_a_start_from_a_teacher_with_as_many_but_other_tokens_is_refused(monkeypatch):
    recognizer = SimpleNamespace(vocabulary_size=7)
    monkeypatch.setattr(initialization, "recognizer_of", lambda teacher: recognizer)
    monkeypatch.setattr(initialization, "initialize_from_teacher", lambda student, teacher: started.append(teacher))
    stage = SimpleNamespace(name="student", named_teachers=[SimpleNamespace(model="teacher")])
    started = []
    terms = SimpleNamespace(teacher=SimpleNamespace(same_tokens=True))
    initialize_from_first_teacher(recognizer, stage, terms)
    assert started == [recognizer]
    terms.teacher.same_tokens = False
    with pytest.raises(ConfigError, match="as many tokens as this run's tokenizer, and they are others"):
        initialize_from_first_teacher(recognizer, stage, terms)


def language_model(path, tokenizer):
    pieces = tokenizer.pieces
    write_language_model([[pieces[token] for token in tokenizer.encode(text)] for text in TEXTS], 2, path)
    return LanguageModelConfig(path=path, unit="token")


def test_a_language_model_of_another_tokenizer_is_refused_by_a_search(tmp_path):
    config = language_model(tmp_path / "tokens.arpa", TOKENIZER)
    # From elsewhere, nobody knows of which tokenizer.
    read_scorer(config, OTHER)
    write_tokenizer_hash(config.path, TOKENIZER)
    read_scorer(config, TOKENIZER)
    with pytest.raises(DataError, match=r"tokens\.arpa was made with another tokenizer.*--unit token"):
        read_scorer(config, OTHER)


def test_a_language_model_of_words_that_takes_the_place_of_one_of_tokens_belongs_to_every_tokenizer(tmp_path):
    write_tokenizer_hash(tmp_path / "lm.arpa", TOKENIZER)
    assert read_tokenizer_hash(tmp_path / "lm.arpa") == TOKENIZER.sha256
    write_tokenizer_hash(tmp_path / "lm.arpa", None)
    assert read_tokenizer_hash(tmp_path / "lm.arpa") is None
