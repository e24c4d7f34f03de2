"""What results depend on besides artifacts: pictures by content, and the machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from t2t_deploy._files import file_sha256
from t2t_deploy.bench import read_processor, visible_gpus
from t2t_deploy.commands._calibrate import calibration_images
from t2t_deploy.commands._verify import MAX_PICTURES
from t2t_deploy.engine import device_capability
from t2t_deploy.pictures import image_set_from_folder, labelled_set_from_folder
from t2t_deploy.runtime import available_threads


@dataclass(frozen=True, slots=True)
class Machine:
    """What engines and measured times depend on. device: CUDA's capability, or none."""

    device: str
    processor: str
    cores: int
    gpus: str


def read_machine() -> Machine:
    """Describe this machine as far as results depend on it."""
    capability = device_capability()
    return Machine(
        device="none" if capability is None else str(capability),
        processor=read_processor().model,
        cores=available_threads(),
        gpus=", ".join(gpu.name for gpu in visible_gpus()) or "none",
    )


def calibration_pictures(folder: Path, count: int) -> tuple[tuple[str, str], ...]:
    """What `calibrate` reads: ("", SHA-256) of each picture, in its order. Raises ImageError."""
    return tuple(("", digest) for digest in calibration_images(folder, count).digests())


def evaluation_pictures(folder: Path, limit: int | None) -> tuple[tuple[str, str], ...]:
    """What `evaluate` reads: the class folder, or "", and SHA-256 of each. Raises ImageError."""
    found = labelled_set_from_folder(folder, limit=limit)
    names = [found.folders[place] for place in found.classes] or [""] * len(found.paths)
    # every class folder counts: how many there are tells which class a name means
    classes = tuple((name, "") for name in found.folders)
    digests = tuple(zip(names, map(file_sha256, found.paths), strict=True))
    return classes + digests


def verification_pictures(folder: Path) -> tuple[tuple[str, str], ...]:
    """What `verify` reads, as `calibration_pictures`. Raises ImageError."""
    found = image_set_from_folder(folder, count=MAX_PICTURES)
    return tuple(("", digest) for digest in found.digests())
