"""A recipe given by somebody else is no program: what its file may not say, and what becomes of odd words in it."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from launcher.bounded_yaml import load_yaml
from launcher.cli import main as chorus
from launcher.errors import ConfigError
from launcher.processes.launchers import make_launcher
from launcher.processes.slurm import _directive, batch_script
from launcher.recipe import ClusterConfig, dump, load_recipe, validate
from launcher.recipe.hostfile import read_topology
from launcher.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
HOSTILE_NAMES = [
    "asr\ntouch /tmp/x",
    "asr\r\n#SBATCH --wrap=id",
    "a'b",
    'a"b',
    "a$(id)",
    "a`id`",
    "a b",
    "-x",
    "a\\b",
    "a#b",
    "a;id",
    "",
    "a\u2028b",
    "a\x00b",
]


def recipe_with(tmp_path: Path, **sections) -> Path:
    """A copy of the built-in recipe `mini` with other sections."""
    values = yaml.safe_load((ROOT / "launcher/recipes/mini.yaml").read_text())
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(values | sections))
    return path


def plan(path: Path, *options: str) -> int:
    return chorus(["plan", str(path), "--run-dir", str(path.parent / "run"), *options])


@pytest.mark.parametrize("key", ["account", "partition"])
@pytest.mark.parametrize("value", HOSTILE_NAMES)
def test_an_account_or_partition_that_is_no_name_is_refused(key, value):
    with pytest.raises(ConfigError, match=rf"slurm\.{key}.*is no name that SLURM has"):
        validate(ClusterConfig, {"slurm": {key: value}}, "The recipe")


@pytest.mark.parametrize("value", ["asr", "gpu,cpu", "team_a-1.x", "0lab", "dept+users:a@b"])
def test_names_that_clusters_have_are_taken(value):
    assert validate(ClusterConfig, {"slurm": {"account": value, "partition": value}}, "").slurm.account == value


@pytest.mark.parametrize(
    "option",
    [
        "--comment=a\ntouch /tmp/x",
        '--comment=a" --wrap="id',
        "--comment=it's",
        "--comment=a\\",
        "--comment=a # b",
        "touch /tmp/x",
        "-C a100",
        "",
        "--comment=a\x85b",
    ],
)
def test_an_option_of_sbatch_that_would_leave_its_line_is_refused_from_anywhere(option):
    with pytest.raises(ConfigError, match=r"slurm\.options.*is no option for a line of a batch script"):
        validate(ClusterConfig, {"slurm": {"options": [option]}}, "The command line")


@pytest.mark.parametrize(
    "option",
    [
        "--output=/home/user/.bashrc",
        "--error=x",
        "--wrap=id",
        "--export=ALL,LD_PRELOAD=/tmp/x.so",
        "--export-file=/tmp/x",
        "--get-user-env",
        "--input=/etc/passwd",
        "--chdir=/tmp",
        "--bb=x",
        "--bbf=/tmp/x",
        "--container=/tmp/x",
        "--array=0-9999",
        "--mail-user=thief@example.com",
        "--uid=0",
        "--propagate=ALL",
        # With a slash, sbatch reads a file.
        "--nodelist=/etc/passwd",
        "--nodelist=./hosts",
        "--exclude=../x",
        # sbatch takes the beginning of a long option for all of it.
        "--outp=x",
    ],
)
def test_an_option_of_sbatch_that_writes_or_runs_is_taken_from_the_command_line_alone(tmp_path, capsys, option):
    path = recipe_with(tmp_path, cluster={"slurm": {"options": [option]}})
    assert plan(path) == 2
    message = capsys.readouterr().err
    assert option in message
    assert '--set "cluster.slurm.options=[...]"' in message
    recipe = load_recipe("mini", [f"cluster.slurm.options=['{option}']"])
    assert recipe.cluster.slurm.options == (option,)


def test_harmless_options_of_sbatch_may_stand_in_a_file(tmp_path):
    options = [
        "--constraint=a100",
        "--comment=two words",
        "--mem=64G",
        "--exclusive",
        "--qos=high",
        "--exclude=node[1-3],node7",
    ]
    assert load_recipe(recipe_with(tmp_path, cluster={"slurm": {"options": options}})).cluster.slurm.options == tuple(
        options
    )


@pytest.mark.parametrize(
    "options",
    [
        ["-o", "ProxyCommand=touch /tmp/x"],
        ["-oProxyCommand=id"],
        ["-o", "proxycommand id"],
        ["-o", "LocalCommand=id"],
        ["-o", "PermitLocalCommand=yes"],
        ["-o", "KnownHostsCommand=id"],
        ["-o", "PKCS11Provider=/tmp/x.so"],
        ["-o", "Include=/tmp/x"],
        ["-o", "ProxyJump=evil"],
        ["-o", "StrictHostKeyChecking=no"],
        ["-o", "SendEnv=AWS_SECRET_ACCESS_KEY"],
        ["-o", "Hostname=evil"],
        ["-o", "Port=22\nProxyCommand=id"],
        ["-F", "ssh_config"],
        ["-F/tmp/x"],
        ["-J", "evil"],
        ["-E", "/home/user/.bashrc"],
        ["-I", "/tmp/x.so"],
        ["-i", "/tmp/key"],
        ["-S", "/tmp/socket"],
        ["-w", "0:0"],
        ["-L", "1:evil:2"],
        ["-A"],
        # Letters are joined, and an option's value may be the next word.
        ["-4F", "x"],
        ["-4", "-p", "-F", "x"],
        ["-o"],
        ["evil.example.com"],
        ["-p", "22; id"],
        ["--", "evil"],
    ],
)
def test_an_option_of_ssh_that_could_run_something_is_taken_from_the_command_line_alone(tmp_path, capsys, options):
    path = recipe_with(tmp_path, cluster={"ssh_options": options})
    assert plan(path) == 2
    message = capsys.readouterr().err
    assert "cluster.ssh_options" in message
    assert '--set "cluster.ssh_options=[...]"' in message
    assert "~/.ssh/config" in message
    assert not (tmp_path / "run").exists()


def test_harmless_options_of_ssh_may_stand_in_a_file_and_any_on_the_command_line(tmp_path):
    harmless = ["-4", "-p", "2222", "-oConnectTimeout=5", "-o", "Compression yes", "-o", "port=22"]
    path = recipe_with(tmp_path, cluster={"ssh_options": harmless})
    assert load_recipe(path).cluster.ssh_options == tuple(harmless)
    assert load_recipe(path, ["cluster.ssh_options=[-F, config]"]).cluster.ssh_options == ("-F", "config")


def test_what_a_run_keeps_of_its_command_line_is_read_there_and_is_refused_as_a_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(load_recipe("mini", ["cluster.ssh_options=[-F, config]"])))
    assert load_recipe(path, of_run=True).cluster.ssh_options == ("-F", "config")
    with pytest.raises(ConfigError, match=r"has .-F. in cluster\.ssh_options"):
        load_recipe(path)


TAGGED = {
    "a set of options of ssh": 'cluster: {ssh_options: !!set {"-oProxyCommand=id"}}',
    "a set of options of sbatch": 'cluster: {slurm: {options: !!set {"--wrap=id"}}}',
    "pairs as options": 'cluster: {ssh_options: !!omap ["-F": x]}',
    "pairs of pairs as options": 'cluster: {ssh_options: !!pairs ["-F": x]}',
    "bytes as an option": 'cluster: {ssh_options: [!!binary "LW9Qcm94eUNvbW1hbmQ9aWQ="]}',
    "bytes as a URL with a password": 'corpus: {shards: !!binary "aHR0cHM6Ly91OlBXQGhvc3QveA=="}',
    "a set of URLs with passwords": 'tracking: {wandb: {tags: !!set {"https://u:PW@host/x"}}}',
    "a set behind an anchor": 'about: &a !!set {"-oProxyCommand=id"}\ncluster: {ssh_options: *a}',
    "a tag of its own": "cluster: !mine {ssh_options: [-F, x]}",
    "a text as a list": 'cluster: {ssh_options: !!seq "-F"}',
}


@pytest.mark.parametrize("name", TAGGED)
def test_a_value_that_only_a_tag_makes_what_it_is_is_refused_wherever_it_stands(tmp_path, capsys, name):
    section = TAGGED[name].partition(":")[0]
    values = yaml.safe_load((ROOT / "launcher/recipes/mini.yaml").read_text())
    values.pop(section, None)
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(values) + TAGGED[name] + "\n")
    assert plan(path) == 2
    message = capsys.readouterr().err
    assert "PW" not in message
    assert "\n" not in message.strip()
    if "!!seq" not in TAGGED[name]:
        assert "and values have none" in message


@pytest.mark.parametrize("name", ["a" * 201, "", "../x", "a/b", ".hidden", "a\n", "a b", "$(id)", "<b>", "-x"])
def test_a_name_of_a_run_that_no_folder_has_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="name"):
        load_recipe(recipe_with(tmp_path, name=name))


def test_dates_and_explicit_tags_of_plain_values_stay_what_they_are():
    assert load_yaml("a: !!str 1\nb: !!int '2'\nc: !!map {d: !!seq [1]}") == {"a": "1", "b": 2, "c": {"d": [1]}}
    assert str(load_yaml("a: 2026-01-02")["a"]) == "2026-01-02"


@pytest.mark.parametrize(
    "address",
    ["$(id)=$SLURM_PROCID", "x=$SLURM_PROCID", "`id`", "a;id", "-oProxyCommand=id", "a b", "a\nb", "a'b", "${IFS}", ""],
)
def test_a_master_address_that_is_no_address_is_refused(tmp_path, capsys, address):
    assert plan(recipe_with(tmp_path, cluster={"master_address": address})) == 2
    assert "is neither a host name nor an address" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["node-a", "10.0.0.1", "fd00::1", "fe80::1%eth0", "gpu_7.cluster.example"])
def test_addresses_are_taken(address):
    assert ClusterConfig(master_address=address).master_address == address


@pytest.mark.parametrize("name", ["A=1", "A B", "$(id)", "", "1A", "A\nB"])
def test_a_variable_that_is_no_name_is_refused(name):
    with pytest.raises(ConfigError, match="is no name of a variable"):
        validate(ClusterConfig, {"environment": [name]}, "The recipe")


def test_the_shell_of_a_node_reads_nothing_but_its_number(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    # A folder is named by whoever starts the run, and may be anything all the same.
    run = RunFolder(tmp_path / "a $(touch here) `touch here` 'q' \"d\" x=$SLURM_PROCID")
    cluster = ClusterConfig.model_validate({"processes": 4, "launcher": "slurm", "slurm": {"nodes": 2}})
    (command,) = make_launcher(cluster).training(run, "teacher", port=29500).commands
    line = command.arguments[-1].replace("exec ", "printf '%s\\0' ", 1)
    printed = subprocess.run(
        ["sh", "-c", line], cwd=tmp_path, env={**os.environ, "SLURM_PROCID": "1"}, capture_output=True, check=True
    )
    words = printed.stdout.decode().split("\0")[:-1]
    assert words[-2:] == [str(run.path), "teacher"]
    assert words.count("--node_rank=1") == 1
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("character", ["\n", '"', "'", "\\", "#", "\r"])
def test_a_folder_that_a_batch_script_cannot_name_is_refused(tmp_path, character):
    recipe = load_recipe("mini", ["cluster.launcher=slurm"])
    with pytest.raises(ConfigError, match="cannot be written into a batch script"):
        batch_script(recipe, RunFolder(tmp_path / f"a{character}b"), ["run", "mini"])


def test_a_batch_script_holds_the_words_of_its_command_as_they_were_given(tmp_path):
    recipe = load_recipe("mini", ["cluster.launcher=slurm"])
    arguments = ["run", "mini", "--set", "stages.teacher.about='$(id)\n`id`'"]
    script = batch_script(recipe, RunFolder(tmp_path / "a run"), arguments)
    (line,) = [part for part in script.split("\n\n")[1].split(" &\n") if "launcher.cli" in part]
    assert shlex.split(line.partition("\n")[2])[3:] == arguments
    assert f'#SBATCH "--output={tmp_path}/a run/slurm-%j.log"' in script
    assert _directive("--comment=two words") == '#SBATCH "--comment=two words"'


SECRETS = [
    "https://user:PW@example.com/shards",
    "ftp://user:PW@example.com/shards",
    "https://PW@example.com/shards",
    "simplecache::https://user:PW@example.com/shards",
    "s3://bucket/shards?X-Amz-Signature=PW",
    "https://account.blob.core.windows.net/c?sv=1&sig=PW",
    "https://example.com/shards?token=PW",
    "https://example.com/shards?X%2DAmz%2DSecurity%2DToken=PW",
    "gs://bucket/shards?X-Goog-Signature=PW",
    "https://example.com/shards#access_token=PW",
]


@pytest.mark.parametrize("url", SECRETS)
def test_a_corpus_url_with_a_password_or_a_signature_is_refused_and_not_repeated(tmp_path, capsys, url):
    path = recipe_with(tmp_path, corpus={"shards": url})
    assert plan(path) == 2
    message = capsys.readouterr()
    assert "corpus.shards is a URL with a password, a token or a signature" in message.err
    assert "PW" not in message.err + message.out
    assert chorus(["run", "mini", "--run-dir", str(tmp_path / "run"), "--set", f"corpus={{shards: '{url}'}}"]) == 2
    assert "PW" not in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "url", ["s3://bucket/shards", "abfs://container@account.dfs.core.windows.net/x", "sftp://user@host/shards"]
)
def test_urls_without_secrets_are_taken(url):
    assert load_recipe("mini", [f"corpus={{shards: '{url}'}}"]).corpus.shards == url


def test_a_secret_anywhere_in_a_recipe_is_refused_with_its_key(tmp_path):
    with pytest.raises(ConfigError, match=r"stages\.teacher\.about is a URL"):
        load_recipe("mini", [f"stages.teacher.about=see {SECRETS[0]}"])


@pytest.mark.parametrize("copy", ["[1]", "{a: b}", "1", "~"])
def test_a_copy_of_what_is_no_stage_is_refused(tmp_path, copy):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"extends: mini\nstages: {{other: {{copy: {copy}}}}}\n")
    with pytest.raises(ConfigError, match="changes stage 'other'"):
        load_recipe(str(recipe))


@pytest.mark.parametrize("slots", ["1" * 5000, "1000000000", "99999999", "-1", "0", "٣"])
def test_slots_that_no_host_has_are_refused_before_they_are_counted(tmp_path, slots):
    hostfile = tmp_path / "hosts"
    hostfile.write_text(f"a slots={slots}\n")
    with pytest.raises(ConfigError, match="Line 1 of the hostfile"):
        read_topology(hostfile)


@pytest.mark.parametrize("slot", ["1" * 5000, "²", "-1", ""])
def test_slots_that_are_none_are_refused_where_they_are_chosen(tmp_path, slot):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("a slots=4\n")
    with pytest.raises(ConfigError, match="names slot"):
        read_topology(hostfile, include=f"a:{slot}")


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_a_hostfile_that_is_no_file_is_neither_read_nor_waited_for(tmp_path, kind):
    path = Path("/dev/zero")
    if kind == "pipe":
        path = tmp_path / "pipe"
        os.mkfifo(path)
    with pytest.raises(ConfigError, match="no regular file"):
        read_topology(path)
