"""A thin W3C WebDriver client over chromedriver: what the browser tests need, and no more. Standard library only."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

import pytest

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--force-prefers-reduced-motion",
    "--window-size=1280,800",
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def chromium_or_skip() -> tuple[str, str]:
    """Return the paths of chromium and chromedriver. Skips where there are none, but fails under CI=true."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium and driver:
        return chromium, driver
    reason = "no chromium with chromedriver on the PATH (Debian: apt install chromium chromium-driver)"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


class WebDriverError(Exception):
    pass


class Browser:
    """One headless Chromium with a fresh profile. Use as a context manager; ``close`` leaves no process and no file."""

    def __init__(self, *, dark: bool = False) -> None:
        chromium, driver = chromium_or_skip()
        self.profile = tempfile.mkdtemp(prefix="browser-test-")
        self._session = ""
        # Its own process group, so that close() ends chromium too, however chromedriver ends.
        self._process = subprocess.Popen(
            [driver, "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "TMPDIR": self.profile, "HOME": self.profile},
        )
        try:
            self._port = self._announced_port()
            flags = [*FLAGS, f"--user-data-dir={self.profile}/profile"]
            if dark:
                flags.append("--force-dark-mode")
            answer = self._call(
                "POST",
                "/session",
                {
                    "capabilities": {
                        "alwaysMatch": {
                            "browserName": "chrome",
                            "goog:chromeOptions": {"binary": chromium, "args": flags},
                            "goog:loggingPrefs": {"browser": "ALL"},
                        }
                    }
                },
            )
            self._session = f"/session/{answer['sessionId']}"
            # The window has a frame even when headless; what the page gets is what is wanted here.
            frame = self.script("return outerHeight - innerHeight")
            self._call("POST", f"{self._session}/window/rect", {"width": 1280, "height": 800 + frame})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _announced_port(self) -> int:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "started successfully on port" in line:
                return int(line.rstrip().rstrip(".").rsplit(" ", 1)[1])
        raise WebDriverError("chromedriver ended before it listened")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=180)
        try:
            text = json.dumps(body if body is not None else {}) if method == "POST" else None
            connection.request(method, path, text, {"Content-Type": "application/json"})
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise WebDriverError(f"{value['error']}: {value['message'].splitlines()[0]}")
        return value

    def close(self) -> None:
        if self._session:
            try:
                self._call("DELETE", self._session)
            except (OSError, WebDriverError):
                pass
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        shutil.rmtree(self.profile, ignore_errors=True)

    # --- what tests do -----------------------------------------------------------------------------------------------

    def open(self, url: str) -> None:
        self._call("POST", f"{self._session}/url", {"url": url})

    def script(self, text: str, *arguments: object) -> Any:
        return self._call("POST", f"{self._session}/execute/sync", {"script": text, "args": list(arguments)})

    def element(self, css: str) -> dict[str, str]:
        """Return the first element, waiting for it."""
        found: list[dict[str, str]] = []

        def look() -> bool:
            found[:] = self._call("POST", f"{self._session}/elements", {"using": "css selector", "value": css})
            return bool(found)

        self.wait(look, f"element {css}")
        return found[0]

    def _of_element(self, css: str, method: str, what: str, body: dict[str, Any] | None = None) -> Any:
        while True:
            try:
                return self._call(method, f"{self._session}/element/{self.element(css)[_ELEMENT]}/{what}", body)
            except WebDriverError as error:  # the page has put another one in its place since it was found
                if not str(error).startswith("stale element reference"):
                    raise

    def click(self, css: str) -> None:
        """Click as a user does: scrolled into view, at the element's middle, and only if nothing covers it."""
        self._of_element(css, "POST", "click")

    def type(self, css: str, text: str) -> None:
        self._of_element(css, "POST", "value", {"text": text})

    def text(self, css: str = "body") -> str:
        return str(self._of_element(css, "GET", "text"))

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come within {timeout_s} s; the page says:\n{self.page_text()}")
            time.sleep(0.03)

    def wait_text(self, text: str, css: str = "body") -> None:
        def shown() -> bool:
            return bool(
                self.script(
                    "const e = document.querySelector(arguments[0]); return !!e && e.innerText.includes(arguments[1]);",
                    css,
                    text,
                )
            )

        self.wait(shown, f"text {text!r} in {css}")

    def page_text(self) -> str:
        return str(self.script("return document.body.innerText"))

    def wait_ready(self, path: str) -> None:
        """Wait until the page of that route has been shown with its data."""
        self.wait(lambda: self.script("return document.body.dataset.ready") == path, f"page {path}")

    def console_problems(self) -> list[str]:
        """Return what the console got above the level of a notice since the last look."""
        entries = self._call("POST", f"{self._session}/se/log", {"type": "browser"})
        return [f"{entry['level']}: {entry['message']}" for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def screenshot(self, path: str) -> None:
        with open(path, "wb") as stream:
            stream.write(base64.b64decode(self._call("GET", f"{self._session}/screenshot")))
