"""A server of static files, and a browser; both are skipped, with the reason, where missing."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from t2t_deploy.serving.web import DEFAULT_FOLDER

from ...report.chromium import Browser, open_browser

_ROOT = Path(__file__).parents[3]
ISOLATED = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
Serve = Callable[..., str]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="session")
def runtime() -> Path:
    """The npm package of onnxruntime-web."""
    found = sorted((_ROOT / DEFAULT_FOLDER).glob("onnxruntime-web-*.tgz"))
    if not found:
        pytest.skip("no onnxruntime-web in build/web-runtime: make web-runtime")
    return found[-1]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, headers_sent: dict[str, str], **options: Any) -> None:
        self._sent = headers_sent
        super().__init__(*args, **options)

    def end_headers(self) -> None:
        for name, value in {**self._sent, "Cache-Control": "no-store"}.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve a folder; returns its address. isolated: with the headers that threads need."""
    with contextlib.ExitStack() as stack:

        def start(folder: Path, *, isolated: bool = False) -> str:
            sent = ISOLATED if isolated else {}
            handler = partial(_Quiet, directory=str(folder), headers_sent=sent)
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{server.server_address[1]}/"

        yield start
