"""Pages opened in headless Chromium, over its debugging pipe: no driver, no port, no package."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LAPTOP, PHONE = (1280, 900), (390, 844)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
    # Whatever a page asks for is not found; file: and data: need no host.
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip
WAIT_MS, ANSWER_S = 30_000, 60.0
# Chromium stops answering when it is asked for a picture that is taller than a texture.
TALLEST_PIXELS = 14_000


class Tab:
    """One page: what it asked for, what it complained of, and what its scripts answer."""

    def __init__(self, to_browser: int, from_browser: int):
        """`to_browser`, `from_browser`: file descriptors of the debugging pipe."""
        self._to_browser, self._from_browser, self._unread = to_browser, from_browser, bytearray()
        self._ids, self._session = itertools.count(1), None
        self.complaints: list[str] = []
        """Errors and warnings of the console, and exceptions that nothing caught."""
        self.requests: list[str] = []
        """Addresses that the page asked for, data: left out."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)

    def open(self, page: Path, size: tuple[int, int] = LAPTOP, is_dark: bool = False) -> None:
        """Loads a file as a screen of that size shows it; narrow screens are touched, not clicked."""
        is_phone = size[0] < 600
        self.complaints, self.requests = [], []
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=size[0], height=size[1], deviceScaleFactor=2 if is_phone else 1, mobile=is_phone,
        )  # fmt: skip
        self.call("Emulation.setTouchEmulationEnabled", enabled=is_phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise's value where it is one."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Returns when the JavaScript condition holds, fails when it does not within half a minute."""
        promise = (
            "new Promise((done) => { const start = Date.now(); const look = () => {"
            f"if ({condition}) done(true); else if (Date.now() - start > {WAIT_MS}) done(false);"
            "else setTimeout(look, 50); }; look(); })"
        )
        assert self.ask(promise), f"never true: {condition}; the page says {self.complaints}"

    def screenshot(self, path: Path, is_whole: bool = False) -> None:
        """What the screen shows, or the page from top to bottom (shrunk where it is very long), as PNG."""
        options: dict[str, Any] = {"captureBeyondViewport": is_whole}
        if is_whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            scale = min(1.0, TALLEST_PIXELS / (size["height"] * self.ask("devicePixelRatio")))
            options["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": scale}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png", **options)["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its result."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        unsent = json.dumps(message).encode() + b"\0"
        while unsent:
            unsent = unsent[os.write(self._to_browser, unsent) :]
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._note(answer)

    def _read(self) -> bytes:
        while (end := self._unread.find(b"\0")) < 0:
            is_ready, _, _ = select.select([self._from_browser], [], [], ANSWER_S)
            assert is_ready, "Chromium does not answer"
            part = os.read(self._from_browser, 1 << 16)
            assert part, "Chromium has gone"
            self._unread += part
        message = bytes(self._unread[:end])
        del self._unread[: end + 1]
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method, values = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(values["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(values["args"]))
        elif method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.complaints.append(values["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not values["request"]["url"].startswith("data:"):
            self.requests.append(values["request"]["url"])


@contextmanager
def chromium_tab() -> Iterator[Tab]:
    """A browser with a profile of its own, ended afterwards."""
    commands_out, commands_in = os.pipe()
    answers_out, answers_in = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            # Chromium's end of the pipe is file descriptors 3 and 4.
            ["bash", "-c", f'exec "$@" 3<&{commands_out} 4>&{answers_in}', "bash", CHROMIUM, *FLAGS,
             f"--user-data-dir={profile}"],
            pass_fds=(commands_out, answers_in), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(commands_out), os.close(answers_in)
        try:
            yield Tab(commands_in, answers_out)
        finally:
            process.terminate()
            process.wait(timeout=30)
            os.close(commands_in), os.close(answers_out)
