"""A headless Chromium for tests and benchmarks, driven by its DevTools protocol over two pipes: no driver, no packages.

    with open_browser(folder) as browser:
        page = browser.open(path.as_uri(), width=1400, height=900)
        page.js("document.title")

Chromium is Debian's (`apt-get install chromium`); as root it is installed when it is missing. `Unavailable` says why
there is none. It stands on its own feet: an empty profile, no network.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-prefers-reduced-motion",  # a page that still glides moves the button away from under the click
    "--remote-debugging-pipe",
)
PATIENCE = 20.0


class Unavailable(Exception):
    """No browser can run here, and why."""


class PageError(AssertionError):
    """A script of ours failed in the page."""


def find_chromium() -> str:
    """The browser's command; installed by apt-get where we are root and it is missing."""
    with (Path(tempfile.gettempdir()) / "slmx-chromium.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test processes install it once
        if (found := _which()) is not None:
            return found
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise Unavailable("needs Chromium: apt-get install chromium")
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["update", "-qq"],
            ["install", "-y", "-qq", "--no-install-recommends", "chromium", "fonts-dejavu-core"],
        ):
            done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, check=False)
        if (found := _which()) is None:
            raise Unavailable(f"Chromium could not be installed: {done.stderr.strip()[-300:] or done.returncode}")
        return found


def _which() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A running browser whose profile lies in `folder`, ended when the block ends."""
    command = find_chromium()
    profile = Path(tempfile.mkdtemp(prefix="profile-", dir=folder))
    to_browser, from_browser = os.pipe(), os.pipe()
    # The protocol's pipes are descriptors 3 and 4 of the browser; a shell moves ours there.
    quoted = " ".join(["exec", command, *FLAGS, f"--user-data-dir='{profile}'", "about:blank"])
    shell = f"exec 3<&{to_browser[0]} 4>&{from_browser[1]}; {quoted}"
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            ["bash", "-c", shell],
            pass_fds=(to_browser[0], from_browser[1]),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    os.close(to_browser[0])
    os.close(from_browser[1])
    browser = Browser(to_browser[1], from_browser[0])
    try:
        browser.call("Browser.getVersion")
        yield browser
    finally:
        os.close(to_browser[1])  # the browser ends when its pipe does
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # a group of our own: its renderers go with it
            process.wait()
        os.close(from_browser[0])
        shutil.rmtree(profile, ignore_errors=True)


class Browser:
    """Speaks the protocol: numbered calls out, answers and events in, each ended by a zero byte."""

    def __init__(self, out: int, into: int) -> None:
        self._out, self._into = out, into
        self._number = 0
        self._rest = b""
        self._pages: dict[str, Page] = {}

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """The result of a call; PageError with the protocol's message where it fails."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters, **({"sessionId": session} if session else {})}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        until = time.monotonic() + PATIENCE
        while True:
            got = self._read(until, method)
            if got.get("id") == number:
                if "error" in got:
                    raise PageError(f"{method}: {got['error']['message']}")
                return dict(got["result"])
            self._event(got)

    def listen(self, seconds: float) -> None:
        """Take in whatever events come in a while."""
        until = time.monotonic() + seconds
        while b"\0" in self._rest or select.select([self._into], [], [], max(0.0, until - time.monotonic()))[0]:
            self._event(self._read(until + 1, "an event"))

    def _read(self, until: float, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._into], [], [], left)[0]:
                raise TimeoutError(f"no answer to {waiting_for} in {PATIENCE:.0f} s")
            block = os.read(self._into, 1 << 20)
            if not block:
                raise Unavailable("Chromium ended; see chromium.log")
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message

    def _event(self, message: dict[str, Any]) -> None:
        if (page := self._pages.get(message.get("sessionId", ""))) is not None:
            page.hear(message["method"], message["params"])

    def open(
        self,
        url: str,
        *,
        width: int = 1400,
        height: int = 900,
        dark: bool = False,
        scripts: bool = True,
        scale: float = 1,
    ) -> Page:
        """A new tab at a size, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height, scale)
        page.dark(dark)
        page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        page.go(url)
        return page


@dataclass
class Page:
    """A tab. `problems` are errors and warnings of its console and exceptions, `requests` all that it asked for."""

    browser: Browser
    session: str
    target: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    loaded: bool = False

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A call of the protocol on this tab."""
        return self.browser.call(method, self.session, **parameters)

    def hear(self, method: str, parameters: dict[str, Any]) -> None:
        """Note what happens in the tab."""
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.problems.append(" ".join(str(a.get("value", a.get("description"))) for a in parameters["args"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.problems.append(parameters["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {parameters['message']}")

    def go(self, url: str) -> None:
        """Load an address and wait for it."""
        self.loaded = False
        self.call("Page.navigate", url=url)
        until = time.monotonic() + PATIENCE
        while not self.loaded:
            if time.monotonic() > until:
                raise TimeoutError(f"{url} did not load in {PATIENCE:.0f} s")
            self.browser.listen(0.02)

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """A window of this size; narrow ones are phones."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    def dark(self, dark: bool) -> None:
        """What the system prefers."""
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def js(self, expression: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        made = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in made:
            details = made["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return made["result"].get("value")

    def wait(self, expression: str) -> Any:
        """The first true value of an expression; an element counts as true."""
        until = time.monotonic() + PATIENCE
        while not (value := self.js(f"(v => v instanceof Node ? true : v)({expression})")):
            if time.monotonic() > until:
                raise TimeoutError(f"never true: {expression}; console: {self.problems}")
            self.browser.listen(0.02)
        return value

    def press(self, key: str) -> None:
        """A key as a person presses it: a character, or Enter, Escape, Tab, ArrowDown …"""
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowDown": 40, "ArrowUp": 38, " ": 32}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        common = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector: str) -> None:
        """A click with the mouse in the middle of the first element that a selector finds."""
        self.call("Page.bringToFront")
        box = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def picture(self, to: Path, *, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        clip: dict[str, Any] = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"clip": {**size, "scale": 1}, "captureBeyondViewport": True}
        made = self.call("Page.captureScreenshot", format="png", **clip)
        to.write_bytes(base64.b64decode(made["data"]))

    def close(self) -> None:
        """Close the tab."""
        self.browser.call("Target.closeTarget", targetId=self.target)
