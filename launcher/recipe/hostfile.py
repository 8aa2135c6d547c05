"""The hosts of a run: DeepSpeed's hostfile, what of it is used, and which rank goes where.

A hostfile has one line per host, `name slots=N`; what follows a `#` is a comment. `include` and `exclude` choose as
DeepSpeed's options do: `NAME[:SLOT,...]`, several of them joined by `@`. Ranks go to hosts in the order of the file.
Every mistake is a ConfigError before anything is started; DeepSpeed itself would run on one host without a word when
there is no hostfile.
"""

import re
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from launcher.errors import ConfigError

LINE = re.compile(r"(\S+)\s+slots=(\d+)")
# A name that began with a dash would be an option of ssh; `@` and `:` separate hosts and slots.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Host:
    """A host with the slots (GPUs, or simply processes) that are used of those it has."""

    name: str
    slots: tuple[int, ...]
    total_slots: int


@dataclass(frozen=True)
class Topology:
    hosts: tuple[Host, ...]

    @property
    def processes(self) -> int:
        return sum(len(host.slots) for host in self.hosts)

    def ranks(self) -> list[range]:
        """Return the ranks of each host."""
        ends = list(accumulate(len(host.slots) for host in self.hosts))
        return [range(end - len(host.slots), end) for host, end in zip(self.hosts, ends, strict=True)]

    def placement(self) -> dict[str, list[int]]:
        """Return the ranks of each host by its name."""
        return {host.name: list(ranks) for host, ranks in zip(self.hosts, self.ranks(), strict=True)}

    def hostfile(self) -> str:
        """Return the hosts in use as a hostfile."""
        return "".join(f"{host.name} slots={host.total_slots}\n" for host in self.hosts)

    def include(self) -> str | None:
        """Return DeepSpeed's `--include` for `hostfile()`; None when every slot is used."""
        if all(len(host.slots) == host.total_slots for host in self.hosts):
            return None
        return "@".join(f"{host.name}:{','.join(map(str, host.slots))}" for host in self.hosts)

    def __str__(self) -> str:
        parts = [
            f"{host.name} (rank{'s' * (len(ranks) > 1)} {_span(ranks)})"
            for host, ranks in zip(self.hosts, self.ranks(), strict=True)
        ]
        return ", ".join(parts)


def _span(ranks: range) -> str:
    return str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"


def read_topology(hostfile: str | Path, include: str | None = None, exclude: str | None = None) -> Topology:
    """Return the hosts of a hostfile that are to be used, in its order."""
    path = Path(hostfile).expanduser()
    slots = _parse(path)
    chosen = {name: set(range(number)) for name, number in slots.items()}
    if include:
        wanted = _selection(include, "include", slots, path)
        chosen = {name: wanted.get(name, set()) for name in slots}
    if exclude:
        for name, unwanted in _selection(exclude, "exclude", slots, path).items():
            chosen[name] = chosen[name] - unwanted
    hosts = tuple(Host(name, tuple(sorted(used)), slots[name]) for name, used in chosen.items() if used)
    if not hosts:
        raise ConfigError(
            f"cluster.include and cluster.exclude leave none of the hosts of {path} ({', '.join(slots)}). "
            "Include a host, or exclude fewer."
        )
    return Topology(hosts)


def _parse(path: Path) -> dict[str, int]:
    """Return the slots of every host of a hostfile."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"The hostfile {path} cannot be read: {reason}. Pass --hostfile FILE with its path."
        ) from None
    slots: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = LINE.fullmatch(text)
        if not match or not NAME.fullmatch(match[1]) or int(match[2]) == 0:
            raise ConfigError(
                f"Line {number} of the hostfile {path} is {text!r}. Write one host a line as `NAME slots=N`, N the "
                "number of processes there, at least 1; users, ports and addresses with colons belong into ssh's "
                "own configuration."
            )
        if match[1] in slots:
            raise ConfigError(
                f"The hostfile {path} names the host {match[1]} twice, the second time in line {number}. Keep one "
                "line, with the sum of the slots."
            )
        slots[match[1]] = int(match[2])
    if not slots:
        raise ConfigError(f"The hostfile {path} names no host. Write one host a line as `NAME slots=N`.")
    return slots


def _selection(text: str, option: str, slots: dict[str, int], path: Path) -> dict[str, set[int]]:
    """Return the slots that `include` or `exclude` names, by host."""
    selected: dict[str, set[int]] = {}
    for part in text.split("@"):
        name, _, numbers_text = part.partition(":")
        numbers = numbers_text.split(",") if ":" in part else []
        if name not in slots:
            raise ConfigError(
                f"cluster.{option} names the host {name!r}, which the hostfile {path} does not have; it has "
                f"{', '.join(slots)}. Write NAME or NAME:SLOT,SLOT, several of them joined by @."
            )
        beyond = [number for number in numbers if not number.isdigit() or int(number) >= slots[name]]
        if beyond:
            raise ConfigError(
                f"cluster.{option} names slot {beyond[0] or repr('')} of the host {name}, which has slots 0 to "
                f"{slots[name] - 1} in the hostfile {path}."
            )
        selected.setdefault(name, set()).update(map(int, numbers) if numbers else range(slots[name]))
    return selected
