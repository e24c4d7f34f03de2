"""Weights files made to harm: nothing in them runs, and none takes more than it holds.

Every payload is first run by the reader that it was made for, and leaves its mark there.
"""

from __future__ import annotations

import builtins
import collections
import functools
import io
import os
import pickle
import re
import resource
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors

from t2t_deploy.model import _checkpoint_file as limits
from t2t_deploy.model import _unpickle
from t2t_deploy.model._pickle_scan import PickleError, scan_pickle

from .tiny import StateDict, load, refusal, same

MARK = "executed"


class Payload:
    """Pickled as this, which a reader calls or sets."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


BY_COMMAND = Payload(os.system, (f"touch {MARK}",))
BY_EVAL = Payload(builtins.eval, (f"open({MARK!r}, 'w').close()",))
PAYLOADS = {
    "command": BY_COMMAND,
    "eval": BY_EVAL,
    # harmless by itself: what its constructor is given is the payload
    "nested": Payload(collections.OrderedDict, ([("inner", [{"deeper": BY_COMMAND}])],)),
    # the payload is what the object's state is set from
    "state": Payload(collections.OrderedDict, (), {"state": BY_EVAL}),
    # numpy's reconstruction of an object array, whose elements are pickled objects
    "array": Payload(*np.array([BY_COMMAND], object).__reduce__()),
    "subprocess": Payload(subprocess.check_call, (["touch", MARK],)),
}


def torch_zip(content: object, *, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


torch_legacy = functools.partial(torch_zip, zipped=False)


def foreign_zip(content: object) -> bytes:
    """A real checkpoint of which data.pkl alone was exchanged."""
    return repacked(torch_zip({"a": torch.zeros(3)}), {"data.pkl": pickle.dumps(content, 2)})


def torch_tar(content: object) -> bytes:
    """What torch wrote before 0.1.10: a tar archive of pickles."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in {
            "sys_info": pickle.dumps({"little_endian": True}),
            "storages": pickle.dumps(0),
            "tensors": pickle.dumps(0),
            "pickle": pickle.dumps(content, 2),
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def repacked(
    content: bytes, changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A zip file written again, some of its files exchanged."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w", compression) as new,
    ):
        for entry in old.infolist():
            data = changes.get(entry.filename.rpartition("/")[2], old.read(entry))
            new.writestr(entry.filename, data)
    return buffer.getvalue()


def run_tar(path: Path) -> None:
    with tarfile.open(path) as archive:
        member = archive.extractfile("pickle")
        assert member is not None
        pickle.load(member)


def run_torch(path: Path) -> None:
    torch.load(path, weights_only=False)


def run_pickle(path: Path) -> None:
    with path.open("rb") as file:
        pickle.load(file)


FORMS: dict[str, tuple[Callable[[object], bytes], Callable[[Path], None]]] = {
    "zip": (torch_zip, run_torch),
    "zip with another data.pkl": (foreign_zip, run_torch),
    "legacy": (torch_legacy, run_torch),
    "tar": (torch_tar, run_tar),
    "pickle, protocol 2": (lambda content: pickle.dumps(content, 2), run_pickle),
    "pickle, protocol 4": (lambda content: pickle.dumps(content, 4), run_pickle),
}


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("form", FORMS)
def test_nothing_runs(form: str, payload: str) -> None:
    write, run = FORMS[form]
    path = Path("model.pth.tar")
    path.write_bytes(write({"state_dict": {"head.weight": PAYLOADS[payload]}}))
    run(path)
    assert Path(MARK).exists(), "the payload is one"
    Path(MARK).unlink()
    refusal(path)
    assert not Path(MARK).exists()


# -- more than it holds --------------------------------------------------------------------------


def refusal_of(content: bytes, name: str = "model.pth") -> str:
    Path(name).write_bytes(content)
    return refusal(Path(name))


SMALL = torch_zip({"head.weight": torch.zeros(3)})
STORAGE = (
    b"\x80\x02}X\x01\0\0\0a(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
)


def with_pickle(content: bytes) -> bytes:
    """A checkpoint of a tensor with another pickle."""
    return repacked(SMALL, {"data.pkl": content})


def with_second_pickle(name: str) -> bytes:
    """A checkpoint with another pickle under a name of its archive."""
    buffer = io.BytesIO(SMALL)
    with zipfile.ZipFile(buffer, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of names that are there already
        archive.writestr(name, pickle.dumps({"a": BY_COMMAND}, 2))
    return buffer.getvalue()


def without_storages() -> bytes:
    """A file whose data are left out; torch leaves them as the memory happened to be."""
    content = torch_legacy({"head.weight": torch.zeros(1000)})
    listed = content.rindex(b"\x80\x02]")
    return content[:listed] + b"\x80\x02]." + content[content.index(b".", listed) + 1 :]


# what stands before an archive moves Python's reader, not torch's
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


MOVED = repacked(SMALL, {})[:200] + repacked(SMALL, {})
NO_STORAGE = b"\x80\x02}X\x01\0\0\0a(X\x06\0\0\0moduleX\x01\0\0\0atQs."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch_tar(BY_COMMAND), "is a tar archive, as torch wrote before 0.1.10, which cannot be "),
        (with_second_pickle("archive/data.pkl"), "two files of one name"),
        (
            with_second_pickle("other/data.pkl"),
            "zip archive has 2 files data.pkl; expected one",
        ),
        (MOVED, "is not at its stated offset"),
        (with_pickle(NO_STORAGE), "(it refers to something that is no storage)"),
        (with_pickle(STORAGE + b"J\xff\xff\xff\xfftQs."), "(a storage has -1 elements)"),
        (with_pickle(STORAGE + b"X\x01\0\0\x001tQs."), "(a storage has '1' elements)"),
        (with_pickle(STORAGE + b"NtQs."), "(a storage has None elements)"),
        (without_storages(), "it lacks the data of 1 storages"),
        (with_pickle(b"\x80\x02\x82\x01."), "(it has a class by number)"),
        (with_pickle(b"\x80\x02}r\xff\xff\xff\x7f."), "(it numbers an object 2,147,483,647)"),
        (with_pickle(b"\x80\x02" + REBUILD + b"(NK\x00))tR."), "(a tensor has no storage)"),
        *((torch_zip({key: "no tensor"}), "") for key in ("a\nb", "\x1b[1m", "\ud800", "x" * 999)),
    ],
)
def test_files_that_are_no_checkpoints(content: bytes, message: str) -> None:
    assert message in refusal_of(content)


def vast_tensor() -> torch.Tensor:
    """A few bytes on disk, 4 TB once written out."""
    return torch.zeros(1).expand(1_000_000, 1_000_000)


OTHER_KIND, OTHER_TYPE = "expected dense floating point", "expected floating point"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (vast_tensor, "claims 1,000,000,0.*weights; expected at most 536,870,912"),
        (lambda: torch.zeros(3, device="meta"), OTHER_KIND),
        (lambda: torch.zeros(3).to_sparse(), OTHER_KIND),
        (lambda: torch.zeros(3, dtype=torch.complex64), OTHER_TYPE),
        (lambda: torch.zeros(3, dtype=torch.float8_e4m3fn), OTHER_TYPE),
        (lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8), OTHER_KIND),
    ],
    ids=["vast", "no data", "sparse", "complex", "8 bits", "quantised"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_of_other_kinds(
    make: Callable[[], torch.Tensor], message: str, weights: StateDict
) -> None:
    assert re.search(message, refusal_of(torch_zip({**weights, "norm.bias": make()})))


@pytest.mark.parametrize(
    ("pickled", "message"),
    [
        (b"\x80\x02" + b"N0" * 600 + b"}.", "more than 1,000 instructions"),
        (b"\x80\x02N\x86.", r"^TUPLE2 takes more than there is$"),
    ],
)
def test_instructions_are_counted(pickled: bytes, message: str) -> None:
    with pytest.raises(PickleError, match=message):
        scan_pickle(io.BytesIO(pickled), budget=1000)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("MAX_PICKLE_BYTES", "its data.pkl has {} bytes"),
        ("MAX_DIRECTORY_BYTES", "the directory of its zip archive has "),
    ],
)
def test_parts_of_an_archive_are_limited(
    limit: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, limit, 50)
    assert message.format(len(pickle_of(SMALL))) in refusal_of(SMALL)


ZIP64_END, ZIP64_LOCATOR, ZIP_END = b"PK\x06\x06", b"PK\x06\x07", SMALL.rindex(b"PK\x05\x06")


def zip64_end_at(offset: int) -> bytes:
    """The small file, whose locator says that its 64-bit end is elsewhere."""
    start = SMALL.rindex(ZIP64_LOCATOR) + 8
    return SMALL[:start] + struct.pack("<Q", offset) + SMALL[start + 8 :]


@pytest.mark.parametrize(
    "content",
    [
        SMALL[:ZIP_END],
        SMALL[: ZIP_END + 10],
        SMALL.replace(ZIP64_END, b"PK??"),
        zip64_end_at((1 << 64) - 1),
        # in the archive's comment, of which no more than the first word is there
        zip64_end_at(len(SMALL))[:-2] + b"\x04\0" + ZIP64_END,
    ],
    ids=["cut", "cut in it", "of another kind", "beyond the file", "without its values"],
)
def test_a_zip_file_without_its_end(content: bytes) -> None:
    assert refusal_of(content) == (
        "model.pth is truncated or no checkpoint (its zip archive has no end record); copy or "
        "download it again"
    )


def pickle_of(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith("data.pkl"))
        return archive.read(name)


# the pickled number of elements of a storage of a thousand, and one of two thousand million
THOUSAND, MANY = b"M\xe8\x03tq", b"J\x00\x94\x35\x77tq"


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_a_storage_larger_than_the_file(form: str) -> None:
    tensor = {"head.weight": torch.zeros(1000)}
    if form == "legacy":
        content = torch_legacy(tensor)
        assert content.count(b"M\xe8\x03") > 1  # sizes too, which must not be changed with it
        place = content.index(b"M\xe8\x03")
        content = content[:place] + MANY[:5] + content[place + 3 :]
    else:
        whole = torch_zip(tensor)
        changed = pickle_of(whole).replace(THOUSAND, MANY)
        assert changed != pickle_of(whole)
        content = repacked(whole, {"data.pkl": changed})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refusal_of(content)
    assert "bytes and claims storages of 8,000,000,000; copy or download it again" in message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18


def test_a_zip_bomb() -> None:
    whole = torch_zip({"head.weight": torch.zeros(1000)})
    bomb = repacked(whole, {"0": bytes(60_000_000)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "would unpack to 60,00" in refusal_of(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 15


def test_a_zip_file_whose_entries_overlap() -> None:
    """Each of many entries is the same bytes: stored, and still a bomb."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, 2))
        archive.writestr("archive/data/0", bytes(100_000))
        entry = archive.infolist()[-1]
        for index in range(1, 200):
            other = zipfile.ZipInfo(f"archive/data/{index}")
            for name in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(other, name, getattr(entry, name))
            archive.filelist.append(other)
    assert "would unpack to 20,0" in refusal_of(buffer.getvalue())


def test_a_compressed_zip_file_that_unpacks_to_no_more_than_it_is() -> None:
    """What it says of its sizes is not believed."""
    packed = repacked(torch_zip({"head.weight": torch.zeros(3)}), {}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    assert unpacked < len(packed)
    assert refusal_of(packed) == (
        f"model.pth would unpack to {unpacked} bytes from {len(packed):,}; expected a zip archive "
        "without compression, as torch.save writes: save it again"
    )


def test_too_many_keys_and_too_large_a_file(
    weights: StateDict, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = torch.zeros(1)
    keys = {f"key{index}": empty for index in range(limits.MAX_KEYS + 1)}
    assert "has 20,001 tensors; expected at most 20,000" in refusal_of(torch_zip(keys))
    path = Path("vast.pth")
    with path.open("wb") as file:
        file.truncate(limits.MAX_FILE_BYTES + 1)
    assert refusal(path).startswith("vast.pth has 8.0 GiB; expected at most 8")


def nested_tuples(depth: int) -> bytes:
    """(((...),),) as a key."""
    return b"\x80\x02})" + b"\x85" * depth + b"K\x01s."


def doubled_tuples(times: int) -> bytes:
    """A key of 2 ** times parts, in a few bytes: a tuple of a tuple, twice, and so on."""
    steps = b"".join(b"q%ch%c\x86" % (index, index) for index in range(times))
    return b"\x80\x02})" + steps + b"K\x01s."


@pytest.mark.parametrize("form", ["zip", "bare"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nested_tuples(500_000), "its objects nest deeper than 64"),
        (doubled_tuples(60), "has more than 10,000,000 items"),
    ],
    ids=["nested", "doubled"],
)
def test_keys_that_never_end(form: str, content: bytes, message: str) -> None:
    whole = torch_zip({"head.weight": torch.zeros(3)})
    data = repacked(whole, {"data.pkl": content}) if form == "zip" else content
    assert message in refusal_of(data)


def test_what_they_are_refused_for_is_real() -> None:
    """Python itself dies of the nested key."""
    script = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    died = subprocess.run(
        [sys.executable, "-c", script], input=nested_tuples(500_000), capture_output=True
    )
    assert died.returncode < 0


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("form", ["zip", "zip with another data.pkl", "legacy"])
def test_nothing_runs_beside_the_weights(form: str, payload: str, weights: StateDict) -> None:
    write, run = FORMS[form]
    path = Path("model.pth.tar")
    one = PAYLOADS[payload]
    beside = {"args": one, "list": [one], "dict": {"a": one}}
    readable = {} if form == "zip with another data.pkl" else weights
    path.write_bytes(write({**beside, "state_dict": readable}))
    if readable:
        found = load(path)
        assert torch.equal(found.state_dict["head.weight"], weights["head.weight"])
        assert "left unread beside the weights: " in " ".join(found.notes) or payload == "state"
    else:
        refusal(path)
    assert not Path(MARK).exists()
    run(path)
    assert Path(MARK).exists(), "the payload is one"


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


ORDERED = b"ccollections\nOrderedDict\n"
STATES = {
    "a function": REBUILD,
    "a class": ORDERED,
    "a class of another": b"cposix\nsystem\n",
    "a type": b"ctorch\nFloatStorage\n",
    "a dictionary": ORDERED + b")R",
    "an object": b"cposix\nsystem\n)R",
}


@pytest.mark.parametrize("target", STATES)
@pytest.mark.parametrize("slots", [True, False])
def test_a_state_changes_nothing_but_what_the_pickle_made(target: str, slots: bool) -> None:
    """Attributes of a function, such as its defaults, would outlive the file."""
    state = b"}(" + text("__defaults__") + b"K\x01\x85" + text("keys") + b"K\x01u"
    state = b"N" + state + b"\x86" if slots else state
    pickled = b"\x80\x02}" + text("a") + STATES[target] + state + b"bs."
    before = state_of_the_program()
    refusal_of(with_pickle(pickled))
    assert state_of_the_program() == before


def state_of_the_program() -> dict[str, Any]:
    """The attributes of what a pickle's names could mean."""
    own = {k: v for k, v in vars(_unpickle).items() if hasattr(v, "__dict__")}
    own = {k: v for k, v in own.items() if getattr(v, "__module__", "") == _unpickle.__name__}
    own |= {"rebuild": torch._utils._rebuild_tensor_v2, "storage": torch.FloatStorage}
    found = {name: dict(vars(value)) for name, value in own.items()}
    return {**found, "defaults": torch._utils._rebuild_tensor_v2.__defaults__}


def test_too_many_kinds_of_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_unpickle, "MAX_KINDS", 3)
    names = b"".join(b"ca\nb%d\n0" % index for index in range(4))
    message = "(it has objects of more than 3 kinds)"
    assert message in refusal_of(with_pickle(b"\x80\x02" + names + b"}."))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_tensor_beyond_its_storage(zipped: bool, weights: StateDict) -> None:
    content = {**weights, "norm.bias": torch.arange(77.0)[:16]}
    whole = torch_zip(content, zipped=zipped)
    pickled = pickle_of(whole) if zipped else whole
    place = pickled.index(b"QK\x00K\x10\x85", pickled.index(b"norm.bias"))
    changed = pickled[:place] + b"QKFK\x10\x85" + pickled[place + 6 :]
    whole = repacked(whole, {"data.pkl": changed}) if zipped else changed
    assert "(norm.bias: it is larger than its storage)" in refusal_of(whole)


class OwnTensor(torch.Tensor):
    """One with a behaviour of its own, which a program may have told torch to read."""


def test_tensors_of_other_classes(weights: StateDict) -> None:
    content = torch_zip({**weights, "norm.bias": torch.zeros(16).as_subclass(OwnTensor)})
    assert refusal_of(content).startswith(
        f"model.pth holds a Python object ({__name__}.OwnTensor) as 'norm.bias', which could run"
    )


# -- safetensors ---------------------------------------------------------------------------------


HEADER = b'{"head.weight":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'


@pytest.mark.parametrize(
    ("length", "rest", "message"),
    [
        (1 << 62, b"{}", "its header claims 4611686018427387904 bytes, and the file has"),
        (9 << 20, b" " * (9 << 20), "its header has 9437184 bytes; expected at most 8 MiB"),
        (50, b'{"head.weight": {"dtype": "F32", "shape": [2], ' + b" " * 99, ""),
        (None, b"12345", "it has 5 bytes, fewer than the length of a header takes"),
        # a tensor beyond the file
        (len(HEADER), HEADER + bytes(16), ""),
    ],
)
def test_a_safetensors_header_that_lies(length: int | None, rest: bytes, message: str) -> None:
    start = b"" if length is None else struct.pack("<Q", length)
    found = refusal_of(start + rest, "model.safetensors")
    assert found.startswith(f"model.safetensors is no readable safetensors file ({message}")
    assert found.endswith("; copy or download it again")


# -- and those that are none of it ---------------------------------------------------------------


@pytest.mark.parametrize("write", [torch_zip, torch_legacy, save_tensors])
def test_honest_files_are_read(write: Callable[[Any], bytes], weights: StateDict) -> None:
    path = Path("model.pth")
    path.write_bytes(write(weights))
    assert same(load(path).state_dict, weights)
