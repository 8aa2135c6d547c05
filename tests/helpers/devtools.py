"""A headless Chromium that a test drives by the protocol of its developer tools."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
START_S = 60


class Tab:
    """The one tab of a browser; what went wrong on its page is in `problems`."""

    def __init__(self, connection: ClientConnection):
        self._connection = connection
        self._number = 0
        self.problems: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": values}))
        while True:
            message = json.loads(self._connection.recv(timeout=START_S))
            self._note(message)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def evaluate(self, script: str) -> Any:
        """The value of an expression on the page, awaited."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, condition: str, timeout_s: float = 30) -> None:
        """Until an expression on the page is true."""
        end_s = time.monotonic() + timeout_s
        while not self.evaluate(condition):
            assert time.monotonic() < end_s, f"{condition} did not come: {self.evaluate('document.body.innerText')}"
            time.sleep(0.1)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def choose_files(self, selector: str, *paths: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def _note(self, message: dict[str, Any]) -> None:
        method = message.get("method")
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(message["params"]["exceptionDetails"]))
        elif method == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.problems.append(message["params"]["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and message["params"]["type"] == "error":
            self.problems.append(str(message["params"]["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])


@contextmanager
def chromium(profile: Path, *options: str) -> Iterator[Tab]:
    """A browser with a profile of its own, gone afterwards."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [f"--user-data-dir={profile}", "--remote-debugging-port=0", *options, "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            port_file = profile / "DevToolsActivePort"
            end_s = time.monotonic() + START_S
            while not (port_file.is_file() and len(port_file.read_text().splitlines()) == 2):
                assert process.poll() is None, "the browser ended"
                assert time.monotonic() < end_s, "the browser did not start"
                time.sleep(0.05)
            port, path = port_file.read_text().splitlines()
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as browser:
                browser.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
                (target,) = [
                    info
                    for info in json.loads(browser.recv(timeout=START_S))["result"]["targetInfos"]
                    if info["type"] == "page"
                ]
                with connect(f"ws://127.0.0.1:{port}/devtools/page/{target['targetId']}", max_size=None) as page:
                    yield Tab(page)
        finally:
            process.kill()
