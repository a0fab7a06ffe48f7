"""Chromium driven over its debugging pipe, with the standard library alone; tests skip visibly where there is none."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BINARY = next((found for name in NAMES if (found := shutil.which(name))), None)
KEYS = {"Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --hide-scrollbars --remote-debugging-pipe"
).split()

# The browser reads commands from 3 and answers on 4. Both are lifted first, as either may already be 3 or 4.
LAUNCHER = """
import os, sys
lifted = [os.dup2(int(fd), int(fd) + 100) for fd in sys.argv[1:3]]
os.dup2(lifted[0], 3), os.dup2(lifted[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Chromium:
    """One headless browser with one tab; a context manager. `run` evaluates JavaScript, `events` keeps what the page said."""

    def __init__(self, seconds: float = 60):
        self.seconds, self.number, self.rest, self.events = seconds, 0, b"", []
        self.folder = tempfile.mkdtemp(prefix="plait-chromium-")
        theirs_in, self.out = os.pipe()
        self.back, theirs_out = os.pipe()

        launch = [sys.executable, "-I", "-c", LAUNCHER, str(theirs_in), str(theirs_out), str(BINARY), *FLAGS]
        self.process = subprocess.Popen(
            [*launch, f"--user-data-dir={self.folder}", "about:blank"],
            pass_fds=(theirs_in, theirs_out), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in), os.close(theirs_out)
        self.session = None
        tab = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_: object):
        try:
            self.session = None
            self.send("Browser.close")
            self.process.wait(10)
        except (OSError, EOFError, TimeoutError, subprocess.TimeoutExpired):
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.out), os.close(self.back)
        shutil.rmtree(self.folder, ignore_errors=True)

    def read(self) -> dict[str, Any]:
        deadline = time.monotonic() + self.seconds
        while b"\0" not in self.rest:
            os.set_blocking(self.back, False)
            try:
                chunk = os.read(self.back, 1 << 20)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("Chromium did not answer") from None
                time.sleep(0.005)
                continue
            if not chunk:
                raise EOFError("Chromium ended")
            self.rest += chunk
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        command = {"id": self.number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.out, json.dumps(command).encode() + b"\0")
        while (message := self.read()).get("id") != self.number:
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def window(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def open(self, path: Path, fragment: str = "") -> None:
        """Opens a file and waits until the page says that it is ready."""
        self.send("Page.navigate", url="about:blank")
        self.events.clear()
        self.send("Page.navigate", url=path.resolve().as_uri() + fragment)
        deadline = time.monotonic() + self.seconds
        while self.run("document.body && document.body.dataset.ready") != "yes":
            if time.monotonic() > deadline:
                raise TimeoutError(f"{path} was not ready: {self.said()}")
            time.sleep(0.05)

    def run(self, script: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def said(self) -> list[str]:
        """Errors and log lines of the page since it was opened, and every request but the page itself."""
        said = []
        for event in self.events:
            name, params = event.get("method", ""), event.get("params", {})
            if name in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening"):
                said.append(json.dumps(params)[:500])
            if name == "Network.requestWillBeSent" and params.get("type") != "Document":
                said.append(f"request: {params['request']['url'][:200]}")
        return said

    def mouse(self, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

    def picture(self, path: Path | str, *, whole: bool = False) -> None:
        Path(path).write_bytes(base64.b64decode(self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))


@pytest.fixture(scope="package")
def chromium():
    """One browser for all tests of this folder."""
    if BINARY is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with Chromium() as browser:
        yield browser
