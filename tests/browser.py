"""Headless Chromium for tests, driven over its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

WAIT_S = 60.0
"""Patience of a test for something that must happen; never how long it takes."""

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason=f"none of {', '.join(NAMES)} is installed; runs where one is"
)

FLAGS = [
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
]  # fmt: skip
if os.geteuid() == 0:
    FLAGS += ["--no-sandbox"]

_KEYS = {"Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, "")}
_SHIFT = 8


@dataclass
class Page:
    """A tab, and what it asked for and complained of; without a session, the browser itself."""

    connection: ClientConnection
    session: str | None = None
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    accepts_dialogs: bool = True
    sent: int = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol and its result."""
        number = self._send(method, params)
        while True:
            message = json.loads(self.connection.recv(WAIT_S))
            if message.get("sessionId") != self.session:
                continue  # of another tab
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result
            self._note(message.get("method"), message.get("params", {}))

    def _send(self, method: str, params: dict[str, Any]) -> int:
        self.sent += 1
        message: dict[str, Any] = {"id": self.sent, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.connection.send(json.dumps(message))
        return self.sent

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.complaints.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["source"] != "network":
            self.complaints.append(params["entry"]["text"])
        elif method == "Page.javascriptDialogOpening":
            self._send("Page.handleJavaScriptDialog", {"accept": self.accepts_dialogs})

    def open(self, url: str) -> None:
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of an expression, or what its promise resolves to."""
        said = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait in the page for an expression to become true."""
        held = self.js(
            f"new Promise((done) => {{ const end = performance.now() + {WAIT_S * 500};"
            f"const look = () => ({condition}) ? done(true) : performance.now() > end ? done(false)"
            ": setTimeout(look, 10); look(); })"
        )
        assert held, f"never held: {condition}; the page says {self.js('document.body.innerText')}"

    def text(self, selector: str) -> str:
        """What can be seen of an element."""
        return str(self.js(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """With the mouse, where the element is on the screen."""
        box = self.js(
            f"(() => {{ const found = document.querySelector({json.dumps(selector)});"
            "found.scrollIntoView({block: 'nearest'}); const box = found.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2, box.width]; })()"
        )
        assert box[2] > 0, f"{selector} is not to be seen"
        place = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **place)

    def type(self, text: str) -> None:
        """Into the field that has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, *, shift: bool = False) -> None:
        code, text = _KEYS[key]
        event = {"key": key, "code": key, "windowsVirtualKeyCode": code, "text": text}
        event |= {"modifiers": _SHIFT if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event | {"text": ""})

    def look(self, *, width: int = 1000, height: int = 900, dark: bool = False) -> None:
        """The size of the window, and which colours its user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(folder: Path) -> Iterator[ClientConnection]:
    """A browser of its own, with its profile in `folder`; it ends with the block."""
    assert BROWSER is not None
    flags = [*FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    command = [BROWSER, *flags, "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address = f"ws://127.0.0.1:{_port_and_path(process, folder / 'DevToolsActivePort')}"
            with connect(address, max_size=None, compression=None) as connection:
                yield connection
                Page(connection).call("Browser.close")
                process.wait(WAIT_S)
        finally:
            process.kill()


def _port_and_path(process: subprocess.Popen[bytes], file: Path) -> str:
    """What the browser writes down as soon as it listens."""
    deadline = time.monotonic() + WAIT_S
    while not (file.exists() and file.read_text().count("\n") == 1):
        assert process.poll() is None and time.monotonic() < deadline, "the browser did not start"
        time.sleep(0.02)
    return file.read_text().replace("\n", "")


@contextmanager
def new_page(connection: ClientConnection) -> Iterator[Page]:
    """A tab, with a session storage of its own."""
    browser = Page(connection)
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)
    yield Page(connection, session["sessionId"])
    browser.call("Target.closeTarget", targetId=target)
