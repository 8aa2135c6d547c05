"""Sources of utterances, one file per corpus, and the one function that writes any of them as shards."""

from data.corpora.corpus import BaseCorpusConfig, Corpus, Selection
from data.corpora.finished import changed_recordings
from data.corpora.prepare import PrepareReport, prepare
from data.corpora.registry import CORPORA, CorpusConfig

__all__ = [
    "CORPORA",
    "BaseCorpusConfig",
    "Corpus",
    "CorpusConfig",
    "PrepareReport",
    "Selection",
    "changed_recordings",
    "prepare",
]
