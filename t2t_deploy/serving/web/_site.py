"""The files of a page: its own, the model, the runtime, and how to serve them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from t2t_deploy._files import file_sha256
from t2t_deploy._preparation import Preparation
from t2t_deploy.serving._classifier import Signature
from t2t_deploy.serving.web._runtime import SCRIPT, WebRuntime

LARGE_BYTES = 50_000_000
"""A larger model is slow to load over a network."""
_OWN = ("index.html", "page.js", "prepare.js", "page.css", "icon.svg")
_README = """{name}: a page that classifies pictures in the browser
{rule}

To look at it, run in this folder:

    python -m http.server

and open the address that it prints. Opened as a file (file://) the page does not work, for
browsers load no scripts and no models from there.

Any server of static files will do: copy the folder there. The page fetches nothing from
elsewhere, and pictures never leave the browser. Serve .mjs files as text/javascript and .wasm
files as application/wasm. A camera, and threads, need https or localhost.

To compute with several threads, the server must send these two headers with index.html and with
every other file:

    Cross-Origin-Opener-Policy: same-origin
    Cross-Origin-Embedder-Policy: require-corp

Without them one thread computes, and the page says so.

{models}
model.json    labels, how pictures are prepared, SHA-256 of the model
runtime/      ONNX Runtime {version} for browsers (onnxruntime-web, MIT licence)
"""


@dataclass(frozen=True, slots=True)
class WebModel:
    """A file that a page loads, uint8 (1, H, W, C) in, top k out.

    derived: whether it was made of the artifact. precision, tolerance: None where no manifest says
    them.
    """

    file: Path
    derived: bool
    size_bytes: int
    signature: Signature
    precision: str | None
    tolerance: float | None


@dataclass(frozen=True, slots=True)
class WebPage:
    """A page and its models, the same one in one precision or two, of which it takes the faster."""

    name: str
    models: tuple[WebModel, ...]
    labels: tuple[str, ...] | None
    runtime: WebRuntime
    examples: tuple[Path, ...] = ()

    @property
    def files(self) -> dict[str, WebModel]:
        """Path within the folder -> the model there."""
        names = ("model.onnx", "model2.onnx")
        return dict(zip(names, self.models, strict=False))


def page_files(page: WebPage) -> dict[str, str | bytes | Path]:
    """Path within the folder -> text or content, or the file to copy."""
    own = resources.files("t2t_deploy.serving.web")
    examples = {f"examples/{path.name}": path for path in page.examples}
    models = "\n".join(
        f"{name:14}the model in {model.precision or 'its precision'}: pixels in, five classes out"
        for name, model in page.files.items()
    )
    readme = _README.format(
        name=page.name,
        rule="=" * (len(page.name) + 45),
        models=models,
        version=page.runtime.version,
    )
    return {
        **{name: (own / name).read_bytes() for name in _OWN},
        **{name: model.file for name, model in page.files.items()},
        "model.json": json.dumps(_about(page, list(examples)), indent=1) + "\n",
        **{f"runtime/{name}": content for name, content in page.runtime.files.items()},
        **examples,
        "README.txt": readme,
    }


def _about(page: WebPage, examples: Sequence[str]) -> Mapping[str, Any]:
    return {
        "name": page.name,
        "models": [_about_model(name, model) for name, model in page.files.items()],
        "labels": page.labels,
        "preparation": browser_steps(page.models[0].signature.preparation),
        "examples": examples,
        "runtime": {"version": page.runtime.version, "script": f"runtime/{SCRIPT}"},
    }


def _about_model(name: str, model: WebModel) -> Mapping[str, Any]:
    signature = model.signature
    assert signature.indices is not None
    return {
        "file": name,
        "precision": model.precision,
        "size_bytes": model.size_bytes,
        "sha256": file_sha256(model.file),
        "tolerance": model.tolerance,
        "input": signature.image.name,
        "shape": [1, *signature.image.shape[1:]],
        "probabilities": signature.scores.name,
        "indices": signature.indices.name,
    }


def browser_steps(preparation: Preparation) -> dict[str, Any]:
    """The preparation for prepare.js; box: (height, width) as of `Preparation.resized_box`."""
    box, shorter_exact = preparation.resized_box()
    return {
        **preparation.to_dict(),
        "size": preparation.size,
        "channels": preparation.channels,
        "box": box,
        "shorter_exact": shorter_exact,
    }
