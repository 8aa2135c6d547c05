"""A browser shows the report and the comparison without a complaint and without fetching anything."""

import re
import shutil
import subprocess

import pytest
from test_analysis_data import expert_record, hard_utterance, page_with, run  # noqa: F401  a fixture

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser")


def complaints(page, folder, dark=False):
    """What the browser's console says of a page."""
    scheme = 0 if dark else 1
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    options += [f"--user-data-dir={folder / 'browser'}", f"--blink-settings=preferredColorScheme={scheme}"]
    command = [BROWSER, *options, "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "</html>" in finished.stdout
    return re.findall(r"CONSOLE.*", finished.stderr)


def test_the_report_has_no_errors_on_the_console_and_a_page_that_fetches_would(run, tmp_path):  # noqa: F811
    page_with(run, [hard_utterance(audio_type="audio/flac")], expert_record())
    assert complaints(run.report_file, tmp_path) == []
    page = run.report_file.read_text()
    assert "</main>" in page
    fetching = tmp_path / "fetching.html"
    fetching.write_text(page.replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'))
    assert "Content Security Policy" in complaints(fetching, tmp_path, dark=True)[0]
