"""`chorus shards reshard`, `merge`, `sample`, `filter` and `play`: new sets of shards, and one utterance of a set."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from data.audio import is_key_character
from data.files import file_sha256
from data.shard_tools.play import play
from data.shard_tools.rewriting import Command, rewrite
from data.shard_tools.selection import Filter, FilterConfig, SampleConfig
from data.shards.index import local_folder
from launcher.commands.prepare import in_flags
from launcher.errors import ConfigError
from launcher.monitoring.progress import open_display
from launcher.recipe import validate


class ShapeConfig(BaseModel, frozen=True, extra="forbid"):
    """The shards of a new set."""

    shard_seconds: float = Field(gt=0, le=1e6, description="audio per shard in seconds")


def reshard(options: argparse.Namespace) -> int:
    command = Command("reshard", {}, _shard_seconds(options), seed=options.seed)
    return _rewrite([options.folder], command, options)


def merge(options: argparse.Namespace) -> int:
    if len(options.folders) < 2:
        raise ConfigError(
            f"chorus shards merge was given one set, {options.folders[0]}: name two or more, or reshard this one."
        )
    prefixes = _split_list(options.prefixes)
    command = Command("merge", {"prefixes": prefixes}, _shard_seconds(options), seed=options.seed, prefixes=prefixes)
    return _rewrite(options.folders, command, options)


def sample(options: argparse.Namespace) -> int:
    values = _given(options, ("utterances", "hours", "share", "seed"))
    config = _validate(SampleConfig, values, "chorus shards sample")
    settings = config.model_dump(mode="json", exclude_none=True)
    command = Command("sample", settings, _shard_seconds(options), choose=config.choose)
    return _rewrite([options.folder], command, options)


def filter_set(options: argparse.Namespace) -> int:
    values: dict[str, Any] = _given(options, tuple(FilterConfig.model_fields))
    for name in ("languages", "speakers", "without_speakers", "kinds"):
        if name in values:
            values[name] = _split_list(values[name])
    config = _validate(FilterConfig, values, "chorus shards filter")
    choice = Filter(config)
    settings = config.model_dump(mode="json", exclude_defaults=True)
    for name in ("keys", "without_keys"):
        if name in settings:
            # The content decides, not the name.
            settings[f"{name}_sha256"] = file_sha256(Path(settings[name]))
    command = Command("filter", settings, _shard_seconds(options), choose=choice.choose)
    return _rewrite([options.folder], command, options)


def play_utterance(options: argparse.Namespace) -> int:
    name = options.key.rpartition("/")[2]
    if options.out is None and not all(map(is_key_character, name)):
        raise ConfigError(f"The key {options.key!r} makes no file name: say where to write to (--out FILE.wav).")
    audio_file, text_file = play(local_folder(options.folder), options.key, Path(options.out or f"{name}.wav"))
    text = text_file.read_text(encoding="utf-8").rstrip("\n")
    if options.json:
        print(json.dumps({"audio": str(audio_file), "text_file": str(text_file), "text": text}, ensure_ascii=False))
    else:
        print(f"{audio_file}\n{text_file}: {text}")
    return 0


def _rewrite(folders: Sequence[str], command: Command, options: argparse.Namespace) -> int:
    display = open_display(sys.stderr)
    display.begin(command.name, 1)
    try:
        report = rewrite(
            [local_folder(folder) for folder in folders],
            local_folder(options.out).absolute(),
            command,
            only_splits=_split_list(options.splits),
            on_progress=lambda split, done, total: display.count(f"utterances of {split}", done, total),
        )
    finally:
        display.end()

    splits = {}
    for name, split in report.splits.items():
        splits[name] = {"utterances": split.utterances, "hours": split.seconds / 3600, "shards": split.shards}
    if options.json:
        print(json.dumps({"folder": options.out, "splits": splits, "kept": report.kept}, ensure_ascii=False, indent=2))
        return 0
    for name, split in report.splits.items():
        line = f"{name}: {split.utterances} utterances, {split.seconds / 3600:.2f} h in {split.shards} shards"
        if name in report.kept:
            line += ", there already"
        print(line)
    return 0


def _shard_seconds(options: argparse.Namespace) -> float:
    return _validate(ShapeConfig, {"shard_seconds": options.shard_seconds}, "chorus shards").shard_seconds


def _validate(config_type: Any, values: Mapping[str, Any], where: str) -> Any:
    try:
        return validate(config_type, dict(values), where)
    except ConfigError as error:
        raise ConfigError(in_flags(str(error), config_type)) from None


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    values = {}
    for name in names:
        if getattr(options, name) is not None:
            values[name] = getattr(options, name)
    return values


def _split_list(text: str | None) -> list[str]:
    if not text:
        return []
    return text.split(",")
