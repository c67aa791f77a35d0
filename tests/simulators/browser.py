"""Headless Chromium for tests of pages, driven over its own DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

AXE = Path(__file__).parents[1] / "assets" / "axe-core" / "axe.min.js"
PATIENCE_SECONDS = 60.0
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One tab.

    Attributes:
        errors: What the pages said on the console as errors, for example refused scripts.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.errors: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(PATIENCE_SECONDS))
            self._note(message)
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        if message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(parameters["entry"]["text"] + " " + parameters["entry"].get("url", ""))

    def open(self, url: str) -> None:
        """Open a page and wait until it is loaded."""
        self.run("window.before = true")
        self.call("Page.navigate", url=url)
        self.until("!window.before && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of a script, which may be a promise."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until the value of a script is true."""
        end = time.monotonic() + PATIENCE_SECONDS
        guarded = f"(() => {{ try {{ return {script} }} catch {{ return false }} }})()"  # a page may not be there yet
        while not self.run(guarded):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)

    def size(self, width: int, height: int) -> None:
        """Set the size of the window in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def media(self, **features: str) -> None:
        """Set what the operator prefers, for example ``prefers_color_scheme="dark"``."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=named)

    def press(self, key: str) -> None:
        """Press a key."""
        codes = {"Tab": 9, "Enter": 13}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text)

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def findings(self, rule: str = "") -> list[str]:
        """What axe-core finds on this page: faults for people who cannot see or use a mouse, without the minor ones.

        With `rule`, only findings of this rule.
        """
        if not self.run("'axe' in window"):
            self.run(AXE.read_text() + "; true")
        options = json.dumps({"runOnly": [rule]} if rule else {})
        found = self.run(f"axe.run({options}).then(r => JSON.stringify(r.violations))")
        return [
            f"{one['id']}: {one['help']}: {node['html'][:200]}"
            for one in json.loads(found)
            if one["impact"] in ("moderate", "serious", "critical")
            for node in one["nodes"]
        ]


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start Chromium with a profile in `folder`, and end it."""
    assert CHROMIUM is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0"]
    command = [CHROMIUM, *options, f"--user-data-dir={folder}", "--no-first-run", "--disable-extensions", "about:blank"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            port = _port(folder / "DevToolsActivePort", process)
            with connect(_target(port), max_size=None) as socket:
                yield Browser(socket)
        finally:
            process.terminate()


def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, "Chromium ended at once"
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(file.read_text().splitlines()[0])
        time.sleep(0.05)
    raise AssertionError("Chromium names no port")


def _target(port: int) -> str:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as reply:
        return next(one["webSocketDebuggerUrl"] for one in json.load(reply) if one["type"] == "page")
