"""The options of commands that recognise about the search, and about where it runs."""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.recipe.search import SearchConfig

# As in launcher/recipe/search.py, which takes long to import.
SEARCH_KINDS = ("greedy", "transducer", "prefix_beam", "attention_beam", "rescoring", "joint")
# Language models and hotwords need a beam; this one every model has.
BEAM_BY_DEFAULT = "prefix_beam"


def add_search_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--search",
        choices=SEARCH_KINDS,
        help=f"how to search (default: greedy, or {BEAM_BY_DEFAULT} where a beam is needed)",
    )
    parser.add_argument("--beam", type=int, metavar="N", help="hypotheses that are followed at once")
    parser.add_argument("--n-best", type=int, metavar="N", help="hypotheses to give, best first")
    parser.add_argument("--language-model", metavar="FILE", help="n-gram model in ARPA format, .gz or not, or of KenLM")
    parser.add_argument("--language-model-unit", choices=("word", "token"), help="what the n-grams are of: word, token")
    parser.add_argument("--language-model-weight", type=float, metavar="W", help="weight of the language model")
    parser.add_argument("--hotwords", metavar="FILE", help="phrases to expect, one a line")
    parser.add_argument(
        "--chunk", type=int, metavar="N", help="encoder frames that attention sees at once, as while audio arrives"
    )
    parser.add_argument(
        "--device", metavar="D", help="where to compute: cpu, cuda or cuda:N (default: a GPU where there is one)"
    )
    parser.add_argument("--left-chunks", type=int, metavar="N", help="chunks that it sees before those (default: all)")


def search_values(options: argparse.Namespace) -> dict[str, Any] | None:
    """What the options say of the search, as in a recipe; None when they say nothing."""
    language_model = {
        "path": options.language_model,
        "unit": options.language_model_unit,
        "weight": options.language_model_weight,
    }
    beam_values = {
        "beam": options.beam,
        "n_best": options.n_best,
        "language_model": _without_none(language_model) or None,
        "hotwords": _without_none({"path": options.hotwords}) or None,
    }
    beam_values = _without_none(beam_values)
    chunk = _without_none({"frames": options.chunk, "left_chunks": options.left_chunks})
    if not beam_values and not chunk and options.search is None:
        return None

    kind = options.search
    if kind is None:
        kind = "greedy"
        if beam_values:
            kind = BEAM_BY_DEFAULT
    values = {"kind": kind, **beam_values}
    if chunk:
        values["chunk"] = chunk
    return values


def read_search_options(options: argparse.Namespace) -> "SearchConfig":
    """The search of the options and of their --set, greedy where they say nothing; ConfigError when it is none."""
    # Here: the parser imports this module, and is to come at once.
    from launcher.recipe.search import check_search_files, read_search
    from launcher.recipe.yaml_io import apply_override

    values = search_values(options) or {}
    for override in options.set:
        apply_override(values, override)
    search = read_search({"kind": "greedy", **values}, "The search of these options")
    check_search_files(search, "search")
    return search


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
