"""Which language each utterance of a split is in, stored in a file so that a process need not read the transcripts.

The file names the shards that it belongs to. One that is missing, torn or of others is not used: the languages are read
again, and the file is replaced whole. Several processes may do so at once.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.errors import DataError
from data.npz import read_npz, write_npz
from data.shards.index import ShardIndex

Codes = npt.NDArray[np.int32]
# More than are spoken. Each gets a sampler of its own, and all names have the length of the longest in the file.
MAX_LANGUAGES = 10_000
MAX_NAME_CHARACTERS = 100


def utterance_languages(index: ShardIndex, file: Path) -> tuple[list[str], Codes]:
    """The languages of a split in alphabetical order, and for each utterance the number of its own, int32 [N].

    DataError for a name that is none, and for more of them than there are languages.
    """
    stored = _read(file, index)
    if stored is not None:
        return stored

    number_of_language: dict[str, int] = {}
    codes = np.empty(len(index), dtype=np.int32)
    for position, row in enumerate(index.rows()):
        language = row["language"]
        # Also because numpy drops zeros at the end of a name: read from the file, it would be another language.
        if len(language) > MAX_NAME_CHARACTERS or not language.isprintable():
            raise DataError(
                f"The utterance {row['key']} of {index.folder} has the language {language[:40]!r}, which is no name of "
                f"one: up to {MAX_NAME_CHARACTERS} letters and signs. Correct it, or share out over corpora "
                "(corpus.over=corpora)."
            )
        codes[position] = number_of_language.setdefault(language, len(number_of_language))
        if len(number_of_language) > MAX_LANGUAGES:
            raise DataError(
                f"The utterances of {index.folder} are in more than {MAX_LANGUAGES} languages, and each would be "
                "shared out to. Correct them, or share out over corpora (corpus.over=corpora)."
            )
    # Not in the order of their first utterances: a split that is written again must not change it.
    names = sorted(number_of_language)
    order = np.empty(len(names), dtype=np.int32)
    for number, name in enumerate(names):
        order[number_of_language[name]] = number
    codes = order[codes]
    file.parent.mkdir(parents=True, exist_ok=True)
    smallest = np.min_scalar_type(max(len(names) - 1, 0))
    write_npz(file, origin=np.array(index.fingerprint), names=np.array(names), codes=codes.astype(smallest))
    return names, codes


def _read(file: Path, index: ShardIndex) -> tuple[list[str], Codes] | None:
    stored = read_npz(file)
    if stored is None or not {"origin", "names", "codes"} <= stored.keys():
        return None
    if stored["origin"].shape != () or str(stored["origin"]) != index.fingerprint:
        return None
    names = stored["names"]
    codes = stored["codes"]
    if names.dtype.kind != "U" or names.ndim != 1:
        return None
    if codes.dtype.kind != "u" or codes.shape != (len(index),):
        return None
    if len(codes) and int(codes.max()) >= len(names):
        return None
    return names.tolist(), codes.astype(np.int32)
