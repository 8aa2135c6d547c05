"""Hostfiles, what is chosen of them, and the number of processes that follows."""

import pytest
from deepspeed.launcher.runner import _parse_hostfile, parse_inclusion_exclusion
from hypothesis import given
from hypothesis import strategies as st

from launcher.cli import main as chorus
from launcher.errors import ConfigError
from launcher.recipe import load_recipe
from launcher.recipe.hostfile import Host, Topology, read_topology

HOSTS = """
# the new rack
node-a slots=4
node-b   slots=2   # two GPUs are broken

node-c slots=4
"""


@pytest.fixture
def hostfile(tmp_path):
    path = tmp_path / "hosts"
    path.write_text(HOSTS)
    return path


def test_ranks_go_to_hosts_in_the_order_of_the_file(hostfile):
    topology = read_topology(hostfile)
    assert topology.processes == 10
    assert [(host.name, *ranks) for host, ranks in zip(topology.hosts, topology.ranks(), strict=True)] == [
        ("node-a", 0, 1, 2, 3),
        ("node-b", 4, 5),
        ("node-c", 6, 7, 8, 9),
    ]
    assert str(topology) == "node-a (ranks 0 to 3), node-b (ranks 4 to 5), node-c (ranks 6 to 9)"
    assert topology.include() is None


@pytest.mark.parametrize(
    ("include", "exclude", "used"),
    [
        ("node-c@node-a:1,3", None, {"node-a": (1, 3), "node-c": (0, 1, 2, 3)}),
        (None, "node-a@node-c:0", {"node-b": (0, 1), "node-c": (1, 2, 3)}),
        ("node-a@node-b", "node-b:0", {"node-a": (0, 1, 2, 3), "node-b": (1,)}),
    ],
)
def test_hosts_and_slots_are_included_and_excluded(hostfile, include, exclude, used):
    assert {host.name: host.slots for host in read_topology(hostfile, include, exclude).hosts} == used


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("# nobody\n\n", "names no host"),
        ("node-a slots=2\nnode-b slots=2\nnode-a slots=1\n", "names the host node-a twice, the second time in line 3"),
        ("node-a\n", "Line 1 of the hostfile .* is 'node-a'. Write one host a line"),
        ("node-a slots=0\n", "at least 1"),
        ("node-a slots=2 max_slots=4\n", "Line 1"),
        ("-oProxyCommand=evil slots=2\n", "Line 1"),
        ("root@node-a slots=2\n", "belong into ssh's own configuration"),
        (b"\xff\xfe\x00", "cannot be read: it is no text"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_mistake_in_a_hostfile_is_named_with_its_line(tmp_path, content, fragment):
    path = tmp_path / "hosts"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=fragment):
        read_topology(path)


@pytest.mark.parametrize(
    ("include", "exclude", "fragment"),
    [
        ("node-d", None, "cluster.include names the host 'node-d', which .* has node-a, node-b, node-c"),
        (None, "node-b:2", "cluster.exclude names slot 2 of the host node-b, which has slots 0 to 1"),
        ("node-a:", None, "names slot '' of the host node-a"),
        (None, "node-a@node-b@node-c", "leave none of the hosts"),
    ],
)
def test_a_choice_that_the_hostfile_does_not_have_is_refused(hostfile, include, exclude, fragment):
    with pytest.raises(ConfigError, match=fragment):
        read_topology(hostfile, include, exclude)


@given(
    st.lists(st.integers(min_value=1, max_value=5), min_size=1, max_size=6).flatmap(
        lambda totals: st.tuples(
            st.just(totals),
            st.tuples(*[st.sets(st.integers(min_value=0, max_value=total - 1)) for total in totals]),
        ).filter(lambda pair: any(pair[1]))
    )
)
def test_what_deepspeed_makes_of_the_files_and_options_is_the_topology(drawn):
    """deepspeed(hostfile(topology), include(topology)) == topology, for any hosts and slots in use."""
    hosts = []
    for number, (total_slots, slots) in enumerate(zip(*drawn, strict=True)):
        if slots:
            hosts.append(Host(f"n{number}", tuple(sorted(slots)), total_slots))
    topology = Topology(tuple(hosts))
    pool = _parse_hostfile(topology.hostfile().splitlines())
    active = parse_inclusion_exclusion(pool, topology.include() or "", "")
    assert list(active.items()) == [(host.name, list(host.slots)) for host in topology.hosts]


def test_the_slots_are_the_number_of_processes_unless_the_recipe_says_another(tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("a slots=1\nb slots=1\n")
    settings = [f"cluster.hostfile={hostfile}", "batches.lanes=4"]
    cluster = load_recipe("mini", settings, count_slots=True).cluster
    assert (cluster.processes, cluster.kind) == (2, "ssh")
    hostfile.write_text("a slots=2\nb slots=2\n")
    with pytest.raises(ConfigError, match=r"cluster\.processes is 2, but the hosts .* have 4 slots.*--processes 4"):
        load_recipe("mini", settings, count_slots=True)
    assert load_recipe("mini", [*settings, "cluster.processes=4"], count_slots=True).cluster.processes == 4
    settings.append("corpus.shards=shards")
    assert load_recipe("base", settings, count_slots=True).cluster.processes == 4
    # On the hosts themselves the file is not needed.
    hostfile.unlink()
    assert load_recipe("base", [*settings, "cluster.processes=4"]).cluster.processes == 4


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--launcher", "ssh"], "the launcher ssh needs a hostfile"),
        (["--launcher", "local", "--hostfile", "HOSTS"], "the launcher local does not use a hostfile"),
        (["--set", "cluster.include=a"], "there is none; pass --hostfile"),
        (["--hostfile", "/nowhere"], "The hostfile /nowhere cannot be read"),
        (["--hostfile", "HOSTS"], "cluster.processes is 2, but the hosts of HOSTS that are used have 10 slots"),
        (["--hostfile", "HOSTS", "--set", "cluster.environment=[NOT_SET_ANYWHERE]", "--processes", "10", "--set",
          "batches.lanes=10"], "cluster.environment names NOT_SET_ANYWHERE, which is not set"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_end_with_exit_code_2_and_start_nothing(
    hostfile, tmp_path, capsys, monkeypatch, options, fragment
):
    monkeypatch.chdir(tmp_path)
    options = [option.replace("HOSTS", str(hostfile)) for option in options]
    assert chorus(["plan", "mini", "--run-dir", str(tmp_path / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert fragment.replace("HOSTS", str(hostfile)) in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
