"""What is done to references and hypotheses alike before they are compared.

- `none`: nothing.
- `basic`: any language. Compatibility forms of Unicode (NFKC), lower case, and spaces in the place of punctuation and
  symbols; apostrophes inside of words stay, and so do marks on letters.
- `english`: OpenAI's normaliser of Whisper's paper (Radford et al., 2022, appendix C): spellings, contractions,
  numbers, titles and hesitations.
"""

import unicodedata
from collections.abc import Callable
from typing import Literal, TypeAlias

from launcher.errors import ConfigError

Normalisation: TypeAlias = Literal["none", "basic", "english"]
Normaliser: TypeAlias = Callable[[str], str]
NORMALISATIONS = ("none", "basic", "english")
APOSTROPHES = ("'", "\u2019")


def load_normaliser(kind: Normalisation) -> Normaliser:
    """The normaliser of a kind. ConfigError when its package is not installed."""
    if kind == "none":
        return lambda text: text
    if kind == "basic":
        return basic
    try:
        # Imported here, as it is an extra that few need.
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError:
        raise ConfigError(
            "--normalise english needs the package whisper-normalizer, which is not installed. Run pip install "
            "'chorus-asr[normalise]', or take --normalise basic."
        ) from None
    english = EnglishTextNormalizer()
    return lambda text: english(text).strip()


def basic(text: str) -> str:
    """The text in lower case, with words alone."""
    # Case folding would make ss of the German sharp s, which is another spelling.
    lower = unicodedata.normalize("NFKC", text).lower()
    characters = []
    for position, character in enumerate(lower):
        if character in APOSTROPHES and _is_inside_of_a_word(lower, position):
            characters.append("'")
        # Of punctuation and symbols.
        elif unicodedata.category(character)[0] in "PS":
            characters.append(" ")
        else:
            characters.append(character)
    return " ".join("".join(characters).split())


def _is_inside_of_a_word(text: str, position: int) -> bool:
    if position == 0 or position == len(text) - 1:
        return False
    return text[position - 1].isalnum() and text[position + 1].isalnum()
