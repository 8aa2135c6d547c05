"""What the file of a recipe may not say, although a command line may: a recipe given by a colleague is no program.

Options of ssh and of sbatch can start programs and write files. In a file only those are taken that cannot; the others
are given by whoever starts the run, with `--set`. Credentials in URLs are taken from neither: a recipe is copied into
the run folder, the report and Weights & Biases.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.redaction import has_credentials
from launcher.errors import ConfigError
from launcher.recipe.slurm import OPTION

# Without a value, and with one that follows: how a connection is made, not through what.
SSH_FLAGS = ("-4", "-6", "-C", "-q")
SSH_VALUES = {"-p": re.compile(r"\d+")}
# Options of ssh_config(5) behind -o. None of them names a program, a file, a host or a user, or lowers a check.
SSH_SETTINGS = {
    "addressfamily",
    "compression",
    "connectionattempts",
    "connecttimeout",
    "ipqos",
    "loglevel",
    "port",
    "rekeylimit",
    "serveralivecountmax",
    "serveraliveinterval",
    "tcpkeepalive",
}
SSH_SETTING = re.compile(r"\s*([A-Za-z]+)\s*[\s=]\s*([A-Za-z0-9.:_-]+)\s*")
# Where and when a job runs. Not: files that are read or written, the environment, programs, other users.
SBATCH_OPTIONS = {
    "begin",
    "comment",
    "constraint",
    "contiguous",
    "core-spec",
    "cores-per-socket",
    "cpu-freq",
    "deadline",
    "delay-boot",
    "dependency",
    "distribution",
    "exclude",
    "exclusive",
    "gpu-bind",
    "gpu-freq",
    "gpus-per-socket",
    "gres",
    "gres-flags",
    "hint",
    "hold",
    "licenses",
    "mem",
    "mem-bind",
    "mem-per-cpu",
    "mem-per-gpu",
    "mincpus",
    "nice",
    "no-kill",
    "nodelist",
    "overcommit",
    "oversubscribe",
    "prefer",
    "priority",
    "qos",
    "reservation",
    "sockets-per-node",
    "spread-job",
    "switches",
    "thread-spec",
    "threads-per-core",
    "time-min",
    "tmp",
    "use-min-nodes",
    "wckey",
}
# Their value is a list of hosts, or with a slash the name of a file, which sbatch reads.
SBATCH_LISTS = ("exclude", "nodelist")
# Of a value that is quoted in a message.
MAX_QUOTED_CHARACTERS = 80


def check_file(values: dict[str, Any], path: Path) -> None:
    """Refuse (ConfigError) a recipe's file whose plain values could start programs or write files."""
    cluster = values.get("cluster")
    if not isinstance(cluster, dict):
        return
    option = _refused_ssh_option(_texts(cluster.get("ssh_options")))
    if option is not None:
        raise _refusal(path, "ssh_options", option, "ssh can start programs and read files by its options")
    slurm = cluster.get("slurm")
    if not isinstance(slurm, dict):
        return
    for text in _texts(slurm.get("options")):
        match = OPTION.fullmatch(text)
        # What is no option at all is refused by the schema, with the way to write it.
        if not match:
            continue
        names_file = match[1] in SBATCH_LISTS and "/" in (match[2] or "")
        if match[1] not in SBATCH_OPTIONS or names_file:
            raise _refusal(path, "slurm.options", text, "sbatch can write files and hand on secrets by its options")


def _texts(values: Any) -> list[str]:
    """The items of a list as texts; whether they should be some is for the schema to say."""
    if not isinstance(values, list):
        return []
    return [str(value) for value in values]


def _refused_ssh_option(options: list[str]) -> str | None:
    """Return the first option that is not among those of a file; None when all are."""
    remaining = iter(options)
    for option in remaining:
        if option in SSH_FLAGS:
            continue
        # ssh takes a value behind a blank or directly behind the letter.
        letter = option[:2]
        value = option[2:]
        shown = option
        if not value and (letter == "-o" or letter in SSH_VALUES):
            value = next(remaining, "")
            shown = f"{option} {value}"
        if letter in SSH_VALUES and SSH_VALUES[letter].fullmatch(value):
            continue
        setting = SSH_SETTING.fullmatch(value)
        if letter == "-o" and setting and setting[1].lower() in SSH_SETTINGS:
            continue
        return shown
    return None


def _refusal(path: Path, key: str, option: str, reason: str) -> ConfigError:
    quoted = option[:MAX_QUOTED_CHARACTERS]
    return ConfigError(
        f"The recipe {path} has {quoted!r} in cluster.{key}, and a file may not: {reason}. If you trust it, take it "
        f'out of the file and pass --set "cluster.{key}=[...]" yourself; what is always to hold for ssh belongs into '
        "your ~/.ssh/config."
    )


def check_no_credentials(values: dict[str, Any], source: str) -> None:
    """Refuse (ConfigError) URLs with a password or a signature anywhere in a recipe's plain values."""
    for dotted, text in _all_texts(values, ""):
        if has_credentials(text):
            # The value itself is not shown: this message goes to terminals and logs.
            raise ConfigError(
                f"{source}: {dotted} is a URL with a password, a token or a signature in it, which would stand in the "
                "run folder, the report and W&B. Give the URL without; fsspec takes credentials from the environment "
                "(AWS_ACCESS_KEY_ID, FSSPEC_HTTPS and others, named in cluster.environment for other hosts) and from "
                "~/.config/fsspec."
            )


def _all_texts(values: Any, dotted: str) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) of every text in plain values, items of lists by their name."""
    if isinstance(values, str):
        yield dotted, values
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from _all_texts(value, f"{dotted}.{key}".lstrip("."))
    elif isinstance(values, list):
        for number, value in enumerate(values):
            name = number
            if isinstance(value, dict):
                name = value.get("name", number)
            yield from _all_texts(value, f"{dotted}.{name}")
