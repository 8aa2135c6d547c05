"""The corpora that Chorus can read, by the name that a recipe gives them."""

from typing import Annotated

from pydantic import Field

from data.corpora import aelita, folder, fsdd
from data.corpora.corpus import Corpus

CORPORA: dict[str, Corpus] = {"aelita": aelita.CORPUS, "fsdd": fsdd.CORPUS, "folder": folder.CORPUS}

CorpusConfig = Annotated[
    aelita.AelitaConfig | fsdd.FsddConfig | folder.FolderConfig,
    Field(discriminator="name"),
]
"""The configuration of any corpus: what the `corpus` section of a recipe holds, told apart by `name`."""
