"""Chromium without a window, driven over a pipe by its DevTools protocol: nothing but the browser is needed.

https://chromedevtools.github.io/devtools-protocol/; messages are JSON, each ended by a zero byte, on file descriptors 3 (to
the browser) and 4 (from it).
"""

import json
import os
import select
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_PATIENCE_S = 60.0
_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run --disable-sync "
    "--disable-background-networking --remote-debugging-pipe"
)


def found() -> str | None:
    """The browser's path, or None."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab.

    Attributes:
        errors: what went to the console as a warning or an error, or was thrown, or was refused; also failed requests.
        requests: addresses that were asked for, but for those that the page's policy refused.
    """

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._buffer, self._count = to, back, b"", 0
        self._session: str | None = None
        self._events: list[str] = []
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._asked: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False, phone: bool = False) -> None:
        """Loads a file, on a screen of that size."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self._events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        self._until(lambda: "Page.loadEventFired" in self._events)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        """As with a mouse, in the middle of the first such element, which is scrolled into view."""
        x, y = self.middle(selector)
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def move(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def middle(self, selector: str) -> tuple[float, float]:
        left, top, width, height = self.box(selector)
        return left + width / 2, top + height / 2

    def box(self, selector: str) -> list[float]:
        """Left, top, width and height on the screen of the first such element, once it is scrolled into view."""
        return self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center',"
            "behavior: 'instant'}); const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )

    def key(self, name: str) -> None:
        """A key by its name in the DOM: ArrowRight, Tab, Enter …"""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
        text = {"text": "\r"} if name == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = text if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=codes[name], **more)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        path.write_bytes(b64decode(self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]))

    def printed(self, path: Path) -> None:
        """As a PDF file."""
        path.write_bytes(b64decode(self.call("Page.printToPDF", printBackground=False)["data"]))

    def call(self, method: str, **parameters: Any) -> Mapping[str, Any]:
        """One command and its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        view = json.dumps(message).encode() + b"\0"
        while view:
            view = view[os.write(self._to, view) :]
        answers: list[Mapping[str, Any]] = []
        self._until(lambda: bool(answers), lambda got: answers.append(got) if got.get("id") == self._count else None)
        assert "error" not in answers[0], (method, answers[0])
        return answers[0]["result"]

    def _until(self, done: Any, take: Any = lambda got: None) -> None:
        end = time.monotonic() + _PATIENCE_S
        while not done():
            got = self._read(end)
            take(got)
            self._note(got)

    def _read(self, end: float) -> Mapping[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._back], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError(f"chromium said nothing for {_PATIENCE_S:.0f} s")
            part = os.read(self._back, 1 << 20)
            if not part:
                raise ConnectionError("chromium has ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def _note(self, got: Mapping[str, Any]) -> None:
        method, given = got.get("method"), got.get("params", {})
        if method == "Page.loadEventFired":
            self._events.append(method)
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(given["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.errors.append(str(given["args"]))
        elif method == "Log.entryAdded":
            self.errors.append(given["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self._asked[given["requestId"]] = given["request"]["url"]
            self.requests.append(given["request"]["url"])
        elif method == "Network.loadingFailed" and given.get("blockedReason") == "csp":
            self.requests.remove(self._asked[given["requestId"]])


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser with one tab; gone on leaving."""
    path = found()
    assert path is not None
    with TemporaryDirectory(prefix="paring-chromium-", ignore_cleanup_errors=True) as profile:
        to_read, to = os.pipe()
        back, back_write = os.pipe()
        # The browser wants descriptors 3 and 4; a shell puts them there, whatever numbers ours have.
        command = f'exec "$0" {_OPTIONS} "--user-data-dir=$1" 3<&{to_read} 4>&{back_write}'
        process = subprocess.Popen(
            ["bash", "-c", command, path, profile],
            pass_fds=(to_read, back_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for fd in (to_read, back_write):
                os.close(fd)
            yield Page(to, back)
        finally:
            process.terminate()
            process.wait()
            for fd in (to, back):
                os.close(fd)
