"""The corpora that Chorus can read, by the name that a recipe gives them."""

from typing import Annotated

from pydantic import Field

from data.corpora import (
    aelita,
    aishell,
    asterisk,
    common_voice,
    fleurs,
    folder,
    fsdd,
    gigaspeech,
    librispeech,
    mls,
    tedlium,
    voxpopuli,
    wenetspeech,
    yesno,
)
from data.corpora.corpus import BaseCorpusConfig, Corpus, Selection

CORPORA: dict[str, Corpus] = {
    "aelita": aelita.CORPUS,
    "fsdd": fsdd.CORPUS,
    "folder": folder.CORPUS,
    "librispeech": librispeech.CORPUS,
    "aishell": aishell.CORPUS,
    "common_voice": common_voice.CORPUS,
    "gigaspeech": gigaspeech.CORPUS,
    "wenetspeech": wenetspeech.CORPUS,
    "tedlium": tedlium.CORPUS,
    "mls": mls.CORPUS,
    "voxpopuli": voxpopuli.CORPUS,
    "fleurs": fleurs.CORPUS,
    "asterisk": asterisk.CORPUS,
    "yesno": yesno.CORPUS,
}

CorpusConfig = Annotated[
    aelita.AelitaConfig
    | fsdd.FsddConfig
    | folder.FolderConfig
    | librispeech.LibriSpeechConfig
    | aishell.AishellConfig
    | common_voice.CommonVoiceConfig
    | gigaspeech.GigaSpeechConfig
    | wenetspeech.WenetSpeechConfig
    | tedlium.TedliumConfig
    | mls.MlsConfig
    | voxpopuli.VoxPopuliConfig
    | fleurs.FleursConfig
    | asterisk.AsteriskConfig
    | yesno.YesnoConfig,
    Field(discriminator="name"),
]
"""The configuration of any corpus: what the `corpus` section of a recipe holds, told apart by `name`."""


def select(config: BaseCorpusConfig, seed: int) -> Selection:
    """The utterances of the corpus that `config` configures. Raises DataError when it cannot be read."""
    for corpus in CORPORA.values():
        if isinstance(config, corpus.config):
            return corpus.select(config, seed)
    raise TypeError(f"{type(config).__name__} is the configuration of no corpus; they are {', '.join(CORPORA)}")
