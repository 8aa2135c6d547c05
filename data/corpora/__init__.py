"""Sources of utterances, one file per corpus, and the one function that writes any of them as shards."""

from data.corpora.corpus import Corpus, CorpusConfig, Selection
from data.corpora.prepare import PrepareReport, prepare
from data.corpora.registry import CORPORA, AnyCorpusConfig

__all__ = ["CORPORA", "AnyCorpusConfig", "Corpus", "CorpusConfig", "PrepareReport", "Selection", "prepare"]
