"""What a shell completes: tried in the shell itself."""

import shutil
import subprocess

import pytest

from launcher.cli import main

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "chorus.bash"
    with pytest.MonkeyPatch.context() as patch:
        text = []
        patch.setattr("builtins.print", lambda *values, **_: text.extend(map(str, values)))
        assert main(["completion", "bash"]) == 0
    path.write_text("\n".join(text))
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["chorus", "pl"], {"plan"}),
        (["chorus", "run", "--proc"], {"--processes"}),
        (["chorus", "shards", "ver"], {"verify"}),
        (["chorus", "prepare", "com"], {"common_voice"}),
    ],
)
def test_bash_completes_commands_options_and_corpora(script, words, completed):
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"source '{script}'; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        "_shtab_chorus; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    shell = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert set(shell.stdout.split()) == completed


def test_the_package_is_named_where_it_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'chorus-asr[completion]'" in capsys.readouterr().err
