"""The hosts of a run: DeepSpeed's hostfile, what of it is used, and which rank goes where.

A hostfile has one line per host, `name slots=N`; what follows a `#` is a comment. `include` and `exclude` choose as
DeepSpeed's options do: `NAME[:SLOT,...]`, several of them joined by `@`. Ranks go to hosts in the order of the file.
Every mistake is a ConfigError before anything is started; DeepSpeed itself would run on one host without a word when
there is no hostfile.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from data.files import read_bounded
from launcher.errors import ConfigError

# Five digits: a slot is a process, and its number is made before anything is compared.
LINE_PATTERN = re.compile(r"(\S+)\s+slots=([0-9]{1,5})")
SLOT = re.compile("[0-9]{1,5}")
MAX_BYTES = 2**22
# A name that began with a dash would be an option of ssh; `@` and `:` separate hosts and slots.
NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Host:
    """A host with the slots (GPUs, or simply processes) that are used of those it has."""

    name: str
    slots: tuple[int, ...]
    total_slots: int


@dataclass(frozen=True)
class Topology:
    """The hosts of a run in the order of their ranks."""

    hosts: tuple[Host, ...]

    @property
    def processes(self) -> int:
        """Return the number of processes: one for every slot in use."""
        return sum(len(host.slots) for host in self.hosts)

    def ranks(self) -> list[range]:
        """Return the ranks of each host."""
        ranks = []
        first = 0
        for host in self.hosts:
            end = first + len(host.slots)
            ranks.append(range(first, end))
            first = end
        return ranks

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
        parts = []
        for host in self.hosts:
            slots = ",".join(str(slot) for slot in host.slots)
            parts.append(f"{host.name}:{slots}")
        return "@".join(parts)

    def __str__(self) -> str:
        parts = []
        for host, ranks in zip(self.hosts, self.ranks(), strict=True):
            if len(ranks) == 1:
                parts.append(f"{host.name} (rank {ranks[0]})")
            else:
                parts.append(f"{host.name} (ranks {ranks[0]} to {ranks[-1]})")
        return ", ".join(parts)


def read_topology(hostfile: str | Path, include: str | None = None, exclude: str | None = None) -> Topology:
    """Return the hosts of a hostfile that are to be used, in its order."""
    path = Path(hostfile).expanduser()
    total_slots = read_hostfile(path)
    used_slots = {name: set(range(number)) for name, number in total_slots.items()}
    # As in DeepSpeed, whose options these become; unlike there, both may be given.
    if include:
        included = _parse_selection(include, "include", total_slots, path)
        used_slots = {name: included.get(name, set()) for name in total_slots}
    if exclude:
        for name, slots in _parse_selection(exclude, "exclude", total_slots, path).items():
            used_slots[name] = used_slots[name] - slots

    hosts = []
    for name, slots in used_slots.items():
        if slots:
            hosts.append(Host(name, slots=tuple(sorted(slots)), total_slots=total_slots[name]))
    if not hosts:
        raise ConfigError(
            f"cluster.include and cluster.exclude leave none of the hosts of {path} ({', '.join(total_slots)}). "
            "Include a host, or exclude fewer."
        )
    return Topology(tuple(hosts))


def read_hostfile(path: Path) -> dict[str, int]:
    """Return the slots of every host of a hostfile; ConfigError names the line that is wrong."""
    try:
        lines = read_bounded(path, MAX_BYTES).decode("utf-8").splitlines()
    except OSError as error:
        raise ConfigError(
            f"The hostfile {path} cannot be read: {error.strerror}. Pass --hostfile FILE with its path."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(
            f"The hostfile {path} cannot be read: it is no text. Pass --hostfile FILE with its path."
        ) from None
    except ValueError as error:
        raise ConfigError(f"The hostfile {path} cannot be read: {error}. Pass --hostfile FILE with its path.") from None

    slots: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = LINE_PATTERN.fullmatch(text)
        if not match or not NAME_PATTERN.fullmatch(match[1]) or int(match[2]) == 0:
            raise ConfigError(
                f"Line {number} of the hostfile {path} is {text!r}. Write one host a line as `NAME slots=N`, N the "
                "number of processes there, at least 1 and at most 99999; users, ports and addresses with colons "
                "belong into ssh's own configuration."
            )
        name = match[1]
        if name in slots:
            raise ConfigError(
                f"The hostfile {path} names the host {name} twice, the second time in line {number}. Keep one "
                "line, with the sum of the slots."
            )
        slots[name] = int(match[2])
    if not slots:
        raise ConfigError(f"The hostfile {path} names no host. Write one host a line as `NAME slots=N`.")
    return slots


def _parse_selection(text: str, option: str, total_slots: dict[str, int], path: Path) -> dict[str, set[int]]:
    """Return the slots that `include` or `exclude` names, by host."""
    selected: dict[str, set[int]] = {}
    for part in text.split("@"):
        name, colon, numbers = part.partition(":")
        if name not in total_slots:
            raise ConfigError(
                f"cluster.{option} names the host {name!r}, which the hostfile {path} does not have; it has "
                f"{', '.join(total_slots)}. Write NAME or NAME:SLOT,SLOT, several of them joined by @."
            )
        slots = selected.setdefault(name, set())
        # A host without a colon is all of its slots; `NAME:` with nothing after it is a mistake.
        if not colon:
            slots.update(range(total_slots[name]))
            continue
        for number in numbers.split(","):
            if not SLOT.fullmatch(number) or int(number) >= total_slots[name]:
                raise ConfigError(
                    f"cluster.{option} names slot {number or repr('')} of the host {name}, which has slots 0 to "
                    f"{total_slots[name] - 1} in the hostfile {path}."
                )
            slots.add(int(number))
    return selected
