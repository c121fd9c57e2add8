"""A headless Chromium for tests, driven over its DevTools socket: what a page does when a reader opens it."""

import json
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MISSING = "no Chromium on this machine: `apt-get install chromium` lets the pages be tested in a real browser"


def executable() -> str | None:
    """The first Chromium there is."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@dataclass
class Visit:
    """What happened while a page was opened at one width."""

    errors: list[str] = field(default_factory=list)  # console errors and uncaught exceptions
    requests: list[str] = field(default_factory=list)  # of anything but the page itself
    overflow: int = 0  # pixels that the document is wider than the window
    broken: list[str] = field(default_factory=list)  # pictures that could not be drawn


class Browser:
    """One headless Chromium with one tab; use it as a context manager."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> "Browser":
        import websocket

        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-dev-shm-usage",
        ]
        more = [
            "--disable-background-networking",
            "--remote-allow-origins=*",
            f"--user-data-dir={self.folder}",
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(
            [executable(), *flags, *more, "--remote-debugging-port=0", "about:blank"], **quiet
        )
        self.number, self.events = 0, []
        port = self.wait_for_port()
        self.socket = websocket.create_connection(
            f"ws://127.0.0.1:{port[0]}{port[1]}", timeout=60, suppress_origin=True
        )
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)

    def wait_for_port(self) -> list[str]:
        """[port, path] that Chromium wrote when it was ready."""
        path = self.folder / "DevToolsActivePort"
        for _ in range(600):
            if path.exists() and len(found := path.read_text().split()) == 2:
                return found
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"Chromium ended with exit code {self.process.returncode} before it was ready"
                )
            time.sleep(0.1)
        raise RuntimeError("Chromium was not ready within a minute")

    def receive(self) -> dict:
        message = json.loads(self.socket.recv())
        if "method" in message:
            self.events.append(message)
        return message

    def call(self, method: str, **parameters: object) -> dict:
        """One DevTools command and its result."""
        self.number += 1
        session = {"sessionId": self.session} if hasattr(self, "session") else {}
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters, **session}))
        while (message := self.receive()).get("id") != self.number:
            pass
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def ask(self, expression: str) -> object:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)[
            "result"
        ].get("value")

    def visit(self, page: Path, width: int, height: int = 900) -> Visit:
        """Open a file at a window width, everything on it unfolded, and say what happened."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.receive()
        self.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        pictures = (
            "Promise.all([...document.images].map(i => i.decode().then(() => '', () => i.alt || 'no alt')))"
        )
        result = Visit(overflow=self.ask(wide), broken=[name for name in self.ask(pictures) if name])
        for event in self.events:
            what, content = event["method"], event["params"]
            if what == "Runtime.exceptionThrown":
                result.errors.append(content["exceptionDetails"]["text"])
            elif what == "Runtime.consoleAPICalled" and content["type"] == "error":
                result.errors.append(str([a.get("value", "") for a in content["args"]]))
            elif what == "Log.entryAdded" and content["entry"]["level"] == "error":
                result.errors.append(content["entry"]["text"])
            elif what == "Network.requestWillBeSent":
                url = content["request"]["url"]
                if not url.startswith(("data:", "about:")) and url != page.resolve().as_uri():
                    result.requests.append(url)
        return result

    def screenshot(self, path: Path) -> None:
        """The whole page as it is now, as PNG."""
        import base64

        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
