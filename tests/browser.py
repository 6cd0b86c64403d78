"""Headless Chromium over its own protocol, as far as the tests need it: keys, clicks, sizes, pictures."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
CODES = {"Enter": 13, "Backspace": 8, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39}


def found() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    def __init__(self, socket: Any) -> None:
        self.socket, self.number = socket, 0

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv(timeout=30))).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def value(self, expression: str) -> Any:
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 15) -> None:
        end = time.monotonic() + seconds
        while not self.value(expression):
            assert time.monotonic() < end, f"never true: {expression}; {self.value('document.body.innerText')}"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        for key in keys:
            text = {} if key in CODES else {"text": key}
            if key == "Enter":
                text = {"text": "\r"}
            how = {"key": key, "windowsVirtualKeyCode": CODES.get(key, ord(key[0].upper())), **text}
            self.send("Input.dispatchKeyEvent", type="keyDown", **how)
            self.send("Input.dispatchKeyEvent", type="keyUp", **how)

    def size(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def dark(self, on: bool) -> None:
        value = "dark" if on else "light"
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": value}])

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot")["data"]))


@contextmanager
def opened(url: str) -> Iterator[Page]:
    from websockets.sync.client import connect

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        options += ["--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}"]
        with subprocess.Popen([str(found()), *options, "about:blank"], stderr=subprocess.DEVNULL) as browser:
            try:
                where, end = Path(profile) / "DevToolsActivePort", time.monotonic() + 60
                while not where.exists() or len(where.read_text().split()) < 2:
                    assert time.monotonic() < end, "Chromium did not start"
                    time.sleep(0.05)
                port, path = where.read_text().split()
                with connect(f"ws://127.0.0.1:{port}{path}", max_size=2**26) as control:
                    target = Page(control).send("Target.createTarget", url="about:blank")["targetId"]
                with connect(f"ws://127.0.0.1:{port}/devtools/page/{target}", max_size=2**26) as socket:
                    page = Page(socket)
                    page.send("Page.navigate", url=url)
                    yield page
            finally:
                browser.terminate()
