"""One file in onnxruntime-web in headless Chromium: run by `runtimes.py`, in our environment.

python runtime_browser.py (wasm|webgpu) FILE.onnx FOLDER
"""

from __future__ import annotations

import functools
import http.server
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.report import chromium

_PAGE = """<!doctype html><meta charset="utf-8"><script type="module">
import * as ort from "/ort/ort.webgpu.min.mjs";
import { runAll } from "/tools/runtime_runner.mjs";
const get = (path) => fetch(path).then((one) => one.arrayBuffer());
const save = (name, body) => fetch(`/out/${name}`, { method: "POST", body });
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = "/ort/";
ort.env.logLevel = "error";
const options = { executionProviders: ["PROVIDER"] };
const ends = JSON.parse(new TextDecoder().decode(await get("/out/ends.json")));
let answer;
try {
  if ("PROVIDER" === "webgpu" && !(await navigator.gpu?.requestAdapter()))
    throw "not applicable: Chromium offers no adapter here";
  const model = new Uint8Array(await get("/model"));
  answer = await runAll(ort, options, model, await get("/out/input.bin"), ends, save);
} catch (error) { answer = { version: "", names: {}, reasons: { load: String(error) } }; }
answer.version = `${ort.env.versions.web}, ${navigator.userAgent.match(/Chrome.[0-9]+/)[0]}`;
await save("answer.json", JSON.stringify(answer));
</script>"""


class _Handler(http.server.BaseHTTPRequestHandler):
    def __init__(self, folders: dict[str, Path], page: str, *rest: object) -> None:
        self.folders, self.page = folders, page
        super().__init__(*rest)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        first, _, rest = self.path.lstrip("/").partition("/")
        if not first:
            self._send(self.page.encode(), "text/html")
        elif first in self.folders:
            path = self.folders[first] / rest if rest else self.folders[first]
            kinds = {
                ".mjs": "text/javascript",
                ".js": "text/javascript",
                ".wasm": "application/wasm",
            }
            self._send(path.read_bytes(), kinds.get(path.suffix, "application/octet-stream"))
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        made = self.folders["out"] / self.path.rpartition("/")[2]
        made.with_suffix(".part").write_bytes(body)
        made.with_suffix(".part").rename(made)
        self._send(b"", "text/plain")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def main() -> None:
    """As the module says."""
    provider, model, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    here = Path(__file__).parent
    web = Path(os.environ["RUNTIME_HOME"]) / "node_modules" / "onnxruntime-web" / "dist"
    folders = {"ort": web, "tools": here, "model": model, "out": out}
    page = _PAGE.replace("PROVIDER", provider)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Handler, folders, page)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    program = chromium.find_chromium()
    assert program is not None
    if provider == "webgpu":  # in software, where there is no GPU
        flags = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]
        flags += [one for one in chromium._FLAGS if one != "--disable-gpu"]
        setattr(chromium, "_FLAGS", flags)  # noqa: B010  # its own is for pages without
    with tempfile.TemporaryDirectory() as profile:
        browser = chromium.Browser(program, Path(profile))
        try:
            browser.call("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/")
            while not (out / "answer.json").is_file():
                time.sleep(0.2)
                browser.run("1")  # raises where the tab has gone
        finally:
            browser.close()


if __name__ == "__main__":
    main()
