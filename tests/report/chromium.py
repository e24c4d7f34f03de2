"""A headless Chromium, driven over its own protocol through two pipes: nothing else is needed.

https://chromedevtools.github.io/devtools-protocol/ describes the methods and events.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--use-fake-device-for-media-stream", "--remote-debugging-pipe"),
)
_TIMEOUT_S = 60.0
# the browser reads commands from descriptor 3 and writes to 4
_COMMANDS, _ANSWERS = 3, 4


def find_chromium() -> str | None:
    """The browser's path, or None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab of a browser of its own, to be closed."""

    def __init__(self, program: str, profile: Path) -> None:
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        read_commands, self._to = os.pipe()
        self._from, write_answers = os.pipe()
        # out of the way of the two numbers that they are about to get
        ours = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (read_commands, write_answers)]
        for fd in (read_commands, write_answers):
            os.close(fd)

        def hand_over() -> None:
            os.dup2(ours[0], _COMMANDS)
            os.dup2(ours[1], _ANSWERS)

        self._process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,  # the two must stay; what Python opened closes by itself
            preexec_fn=hand_over,
        )
        for fd in ours:
            os.close(fd)
        made = self.call("Target.createTarget", url="about:blank")
        attached = self.call("Target.attachToTarget", targetId=made["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """End the browser, killed where it does not end by itself."""
        self._session = None
        try:
            with contextlib.suppress(Exception):
                self.call("Browser.close")
                self._process.wait(timeout=5)
        finally:
            self._process.kill()
            self._process.wait()
            os.close(self._to)
            os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask for something and return the answer; events that come before it are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        answer = self._next(lambda found: found.get("id") == self._number)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(
        self, page: Path | str, *, width: int = 1280, height: int = 900, dark: bool = False
    ) -> None:
        """Show a file, or an address, in a window of that size; earlier events are forgotten."""
        self.window(width, height)
        self.prefer(dark=dark)
        self.events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        if not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next(lambda found: found.get("method") == "Page.loadEventFired")

    def window(self, width: int, height: int) -> None:
        """Size of the window, CSS pixels; a narrow one is a phone's."""
        form = {"deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **form)

    def prefer(self, *, dark: bool = False, medium: str = "") -> None:
        """Dark or light, and print where ``medium`` says so."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=medium, features=[scheme])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it becomes."""
        how = {"returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", expression=script, **how)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """Click an element as a hand would: whatever lies over it takes the click."""
        where = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', inline: 'center'});"
            " const r = e.getBoundingClientRect();"
            " return [r.left + r.width / 2, r.top + r.height / 2]; })()"
        )
        click = {"x": where[0], "y": where[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **click)

    def press(self, key: str) -> None:
        """Press a key: Tab, Enter, or a space."""
        codes = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " ")}
        code, text = codes[key]
        pressed = {"key": key, "windowsVirtualKeyCode": code, "text": text}
        self.call("Input.dispatchKeyEvent", type="keyDown", **pressed)
        self.call("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def screenshot(self) -> bytes:
        """A PNG of the whole page."""
        made = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(made["data"])

    def pdf(self) -> bytes:
        """The page as it is printed."""
        made = self.call("Page.printToPDF", printBackground=True, preferCSSPageSize=True)
        return base64.b64decode(made["data"])

    def complaints(self) -> list[str]:
        """What the page wrote to the console, threw, or was forbidden."""
        telling = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [json.dumps(event) for event in self.events if event["method"] in telling]

    def requests(self) -> list[str]:
        """Addresses that the page asked for."""
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]

    def _next(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            while b"\0" not in self._buffer:
                left = deadline - time.monotonic()
                readable, _, _ = select.select([self._from], [], [], max(left, 0))
                assert readable, f"no answer from the browser within {_TIMEOUT_S:.0f} s"
                chunk = os.read(self._from, 1 << 20)
                assert chunk, f"the browser ended with status {self._process.wait()}"
                self._buffer += chunk
            line, _, self._buffer = self._buffer.partition(b"\0")
            message: dict[str, Any] = json.loads(line)
            if "method" in message:
                self.events.append(message)
            if wanted(message):
                return message


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """A browser with a fresh profile; skips the test where there is none."""
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium: install it (Debian: apt install chromium)")
    with contextlib.closing(Browser(program, profile)) as opened:
        yield opened
