"""The files of onnxruntime-web that a page needs, out of its npm package."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from t2t_deploy.errors import ArtifactError, shown_path

DEFAULT_FOLDER = Path("build/web-runtime")
"""Where ``make web-runtime`` puts the package."""
SCRIPT = "ort.wasm.min.mjs"
# the execution provider for WebAssembly alone; those of WebGPU are twice as large
_FILES = (SCRIPT, "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_PACKAGE = "onnxruntime-web"
_MAX_BYTES = 64 << 20
_HOW = "make web-runtime brings it, or: npm pack onnxruntime-web; then --ort-web FILE.tgz"

_Read = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class WebRuntime:
    """onnxruntime-web. files: name -> content."""

    version: str
    files: Mapping[str, bytes]

    @property
    def sha256(self) -> str:
        """Of the files, in hexadecimal."""
        return hashlib.sha256(
            b"".join(content for _, content in sorted(self.files.items()))
        ).hexdigest()


def read_runtime(path: Path | None) -> WebRuntime:
    """What a page needs of an npm package, as a tarball or a folder.

    None is the tarball in `DEFAULT_FOLDER`. Raises ArtifactError where it is not there, or is no
    such package.
    """
    if path is None:
        path = next(iter(sorted(DEFAULT_FOLDER.glob(f"{_PACKAGE}-*.tgz"))), None)
        if path is None:
            raise ArtifactError(
                f"a page needs {_PACKAGE}, which is not in {DEFAULT_FOLDER}: {_HOW}"
            )
    name = shown_path(path)
    try:
        if path.is_dir():
            return _runtime(name, lambda file: (path / file).read_bytes())
        with tarfile.open(path) as archive:
            return _runtime(name, lambda file: _member(archive, f"package/{file}"))
    except (OSError, EOFError, KeyError, ValueError, TypeError, tarfile.TarError) as err:
        why = " ".join(str(err).split())
        raise ArtifactError(f"{name} is no npm package of {_PACKAGE} ({why}): {_HOW}") from err


def _runtime(name: str, read: _Read) -> WebRuntime:
    about = json.loads(read("package.json"))
    if about["name"] != _PACKAGE:
        raise ArtifactError(f"{name} is the npm package {about['name']!r}: {_HOW}")
    return WebRuntime(str(about["version"]), {file: read(f"dist/{file}") for file in _FILES})


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.getmember(name)
    content = archive.extractfile(member)
    if content is None or member.size > _MAX_BYTES:
        raise ValueError(f"{name} is no file of up to {_MAX_BYTES >> 20} MiB")
    return content.read()
