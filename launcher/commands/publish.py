"""`chorus publish`: a finished model in the layout of Hugging Face, and its upload where there is a token.

The token is that of huggingface_hub: HF_TOKEN, or the file that `hf auth login` writes. It is no option and is never
shown. Without one, or offline, the folder is written and nothing is sent.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from launcher.commands.export_source import default_folder, open_source
from launcher.errors import ConfigError
from launcher.export.model_card import read_facts, write_card
from launcher.export.upload import check_repository, find_token, list_files, upload, why_not_sent
from launcher.export.whole_folder import check_is_free, whole_folder
from model.export import is_hub_layout


def publish(options: argparse.Namespace) -> int:
    repository: str | None = options.to
    if repository is not None:
        check_repository(repository)
    place = Path(options.model).expanduser()
    folder = _write_folder(place, options)

    # What needs the hub's library comes after what does not: without it, too, the folder is written.
    token = None
    if repository is not None and not options.dry_run:
        token = find_token()
    reason = why_not_sent(repository, token, options.dry_run)
    row: dict[str, Any] = {"folder": str(folder), "repository": repository, "url": None, "not_sent": reason}
    if reason is None:
        assert repository is not None
        assert token is not None
        row["url"] = upload(folder, repository, token, options.private)
    row["files"] = list_files(folder)
    if options.json:
        print(json.dumps(row, ensure_ascii=False))
        return 0
    print(folder)
    if options.dry_run:
        for name, num_bytes in row["files"].items():
            print(f"{num_bytes:>12,}  {name}")
    if reason is None:
        print(row["url"])
    else:
        print(f"Not uploaded: {reason}")
    return 0


def _write_folder(place: Path, options: argparse.Namespace) -> Path:
    """The folder to be sent: the one that is named, if it has the layout already, or a new one."""
    if is_hub_layout(place):
        if options.out or options.licence or options.dtype != "fp32":
            raise ConfigError(
                f"{place} is in the layout of Hugging Face already and is sent as it is: leave --out, --licence and "
                "--dtype out, and edit its README.md."
            )
        return place
    out = None
    if options.out:
        out = Path(options.out).expanduser().absolute()
        check_is_free(out)
    # Imports torch; what is wrong with the options is said before that.
    from launcher.export.hub_folder import write_hub_folder
    from launcher.export.model_files import open_model_files

    with open_source(place) as source:
        folder = out or default_folder(source, "huggingface", None)
        check_is_free(folder)
        model = open_model_files(source.folder)
        card = write_card(model.recognizer, read_facts(source.name, source.run, source.stage, options.licence))
        with whole_folder(folder) as temporary:
            write_hub_folder(temporary, model, card, options.dtype)
    return folder
