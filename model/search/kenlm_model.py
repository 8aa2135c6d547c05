"""Language models in KenLM's binary format, which hold large models in little memory and load without parsing.

The package kenlm is optional (`pip install 'chorus-asr[kenlm]'`) and imported when such a file is opened. A word that
the model lacks counts as its `<unk>`; KenLM gives every binary one.
"""

import importlib
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from model.search.ngram import LN_10, LanguageModel, read_arpa

# KenLM writes this at the beginning of its binaries, before the version of the format.
BINARY_MAGIC = b"mmap lm http://kheafield.com/code"


class KenlmModel:
    """A model that KenLM reads, its scores as natural logarithms.

    Contexts are KenLM's states. They compare and hash by what they hold, and are already no longer than what can still
    make a difference.
    """

    def __init__(self, path: Path):
        """ValueError when the package kenlm is not installed, OSError when it cannot read the file."""
        try:
            self._kenlm = importlib.import_module("kenlm")
        except ImportError:
            raise ValueError(
                f"{path} is a KenLM binary, and the package that reads it is not installed: "
                "pip install 'chorus-asr[kenlm]'"
            ) from None
        options = self._kenlm.Config()
        # KenLM would draw a progress bar on stderr.
        options.show_progress = False
        self._model = self._kenlm.Model(str(path), options)

    @property
    def start(self) -> Hashable:
        state = self._kenlm.State()
        self._model.BeginSentenceWrite(state)
        return state

    @property
    def no_context(self) -> Hashable:
        state = self._kenlm.State()
        self._model.NullContextWrite(state)
        return state

    def knows(self, word: str) -> bool:
        return word in self._model

    def score(self, context: Any, word: str) -> float:
        """ln p(word | context)."""
        return self._model.BaseScore(context, word, self._kenlm.State()) * LN_10

    def advance(self, context: Any, word: str) -> Hashable:
        # KenLM computes the score in any case; the state after the word is what is wanted here.
        after = self._kenlm.State()
        self._model.BaseScore(context, word, after)
        return after


def read_language_model(path: Path) -> LanguageModel:
    """Open a KenLM binary or an ARPA file, gzipped or not, whatever the name of the former.

    ValueError when it is neither, or a binary without the package kenlm; OSError when it cannot be read.
    """
    with path.open("rb") as file:
        beginning = file.read(len(BINARY_MAGIC))
    if beginning == BINARY_MAGIC:
        return KenlmModel(path)
    return read_arpa(path)
