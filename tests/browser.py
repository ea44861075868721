"""Headless Chromium, spoken to in its DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if executable is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is on the path")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        opened = Browser(executable, Path(profile))
        yield opened
        opened.close()


class Browser:
    """Headless Chromium, spoken to in its DevTools protocol over a pipe."""

    def __init__(self, executable: str, profile: Path) -> None:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        flags += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        command = [executable, *flags, f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        # The protocol is spoken on descriptors 3 and 4.
        shell = ["sh", "-c", 'exec 3<&0 4>&1; exec "$@" </dev/null >/dev/null', "sh", *command]
        self._process = subprocess.Popen(
            shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._left, self._count, self.events = b"", 0, list[dict[str, Any]]()
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while b"\0" not in self._left:
            data = self._process.stdout.read(1 << 16)
            assert data, "the browser ended"
            self._left += data
        first, self._left = self._left.split(b"\0", 1)
        return dict(json.loads(first))

    def show(self, url: str, width: int, dark: bool = False) -> None:
        """Loads a page at a width in pixels and waits for it."""
        self.events.clear()
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events if "method" in event):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self) -> bytes:
        """The whole page as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def problems(self, own: str = "file:") -> list[dict[str, Any]]:
        """Errors in the console, exceptions, and requests for what is neither `own` nor in the page itself."""
        found = []
        for event in self.events:
            method, parameters = event.get("method", ""), event.get("params", {})
            bad = method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
            if method == "Network.requestWillBeSent":
                bad = not parameters["request"]["url"].startswith((own, "data:", "blob:"))
            if bad:
                found.append(event)
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=120)
