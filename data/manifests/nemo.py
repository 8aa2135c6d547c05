"""NeMo's tarred data sets as rows: `audio_N.tar`, and one manifest of all or one of each in `sharded_manifests`.

A row names its recording as a member of the tar with its `shard_id`; rows that are parts of one recording name it with
-sub1, -sub2, ..., and say their offset and duration. Folders of buckets are read together. Manifests without tars are
tables like any other.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data.containers.members import Member
from data.containers.tar_members import list_members
from data.manifests.columns import whole_recording
from data.manifests.rows import Row, read_rows

MANIFEST = "tarred_audio_manifest.json"
# What NeMo writes for its own record: of the place in a file before it was cut, and of the shard.
RECORDS = ("source_audio_offset", "shard_id", "abs_audio_filepath", "num_samples_per_shard", "label")


def is_nemo_set(folder: Path) -> bool:
    """Whether a folder holds a tarred data set."""
    return bool(nemo_tars(folder)) and bool(nemo_manifests(folder))


def nemo_manifests(folder: Path) -> list[Path]:
    """The manifests of a tarred data set: one for each tar, or one for all."""
    sharded = _numbered(folder / "sharded_manifests", r"manifest_(\d+)\.json")
    if sharded and sharded.keys() >= nemo_tars(folder).keys():
        return list(sharded.values())
    if (folder / MANIFEST).is_file():
        return [folder / MANIFEST]
    return list(_numbered(folder, r"manifest_(\d+)\.json").values())


def nemo_tars(folder: Path) -> dict[int, Path]:
    """The tars of a data set by their number."""
    return _numbered(folder, r"audio_(\d+)\.tar")


def read_nemo(folder: Path, root: Path, split: str) -> Iterator[Row]:
    """The rows of one tarred data set, whose places count from `root`; `split` is empty where it names none."""
    # Buckets are parts of one data set.
    if re.fullmatch(r"bucket_?\d+", split):
        split = ""
    tars = nemo_tars(folder)
    members: dict[int, dict[str, Member]] = {}
    problems: dict[int, str] = {}
    for number, tar in tars.items():
        members[number] = {}
        problems[number] = _fill(members[number], tar)

    for manifest in nemo_manifests(folder):
        place = str(manifest.relative_to(root))
        match = re.search(r"manifest_(\d+)", manifest.name)
        for row in read_rows(manifest, ()):
            if isinstance(row.content, str):
                yield Row(row.line, row.content, place)
                continue
            number = row.content.get("shard_id")
            if number is None and match is not None:
                number = int(match[1])
            if not isinstance(number, int) or number not in tars:
                yield Row(row.line, f"its shard_id {number!r:.40} is that of no audio_N.tar", place)
                continue
            name = str(row.content.get("audio_filepath") or row.content.get("audio_file"))
            # The first of several parts has the name of the recording, the others have numbers.
            whole_name = re.sub(r"-sub\d+(\.\w+)?$", r"\1", name)
            member = members[number].get(name, members[number].get(whole_name))
            if member is None:
                yield Row(row.line, f"its recording {name!r:.80} {problems[number]}", place)
                continue
            content = {name: value for name, value in row.content.items() if name not in RECORDS}
            if "offset" in content:
                content.pop("audio_filepath", None)
                content.pop("audio_file", None)
            else:
                content, stated_s = whole_recording(content)
                member = replace(member, stated_s=stated_s)
            content["audio"] = str(tars[number].relative_to(root))
            content.setdefault("split", split)
            yield Row(row.line, content, place, member)


def _fill(members: dict[str, Member], tar: Path) -> str:
    """Add the recordings in a tar by their names; return why one may be missing there."""
    try:
        for member in list_members(tar):
            if not member.problem:
                members[member.name] = Member(member.name, member.start, member.num_bytes)
    except (OSError, ValueError) as error:
        return f"is not in {tar.name}, which {error!s:.200}"
    return f"is not in {tar.name}, or is no plain file there"


def _numbered(folder: Path, pattern: str) -> dict[int, Path]:
    """The files of a folder whose names match, by the number in them, in the order of these."""
    files: dict[int, Path] = {}
    if folder.is_dir():
        for path in folder.iterdir():
            match = re.fullmatch(pattern, path.name)
            if match:
                files[int(match[1])] = path
    return dict(sorted(files.items()))
