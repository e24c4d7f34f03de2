"""Unpickling that calls nothing of a file: tensors and plain values, and stand-ins for the rest.

A name in a pickle is never imported. The few that make tensors or dictionaries get an object of
this module; every other one gets a class whose objects keep what they are given and do nothing.
None of these objects can be changed by what a pickle may do to it: they have no attributes beyond
their slots, and their state is taken by a method. Limits are `scan_pickle`'s, which comes first.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, ClassVar, cast

import torch

from t2t_deploy.model._pickle_scan import PickleError

MAX_KINDS = 1_000
"""Of objects in a file; Lightning's and DeepSpeed's have some twenty."""
_MOST_AXES = 16

ReadStorage = Callable[[str], bytearray]

_DTYPES = {name: dtype for name, dtype in vars(torch).items() if isinstance(dtype, torch.dtype)}
# quantised ones for their size alone: their tensors are not rebuilt
_STORAGES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64, "Untyped": torch.uint8,
    "QInt8": torch.int8, "QUInt8": torch.uint8, "QInt32": torch.int32, "QUInt4x2": torch.uint8,
    "QUInt2x4": torch.uint8,
}  # fmt: skip
_DICTIONARIES = frozenset({"OrderedDict", "defaultdict", "Counter"})
_PLAIN_TENSORS = frozenset(
    {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.Parameter"}
)


class StoredTensor:
    """A tensor of a file, read on demand.

    shape: its sizes. dtype: as stored. mask: what it is multiplied with, or None.
    """

    __slots__ = ("_offset", "_storage", "_stride", "dtype", "mask", "shape")

    def __init__(
        self,
        storage: _Storage,
        offset: int,
        shape: tuple[int, ...],
        stride: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self._storage, self._offset, self._stride = storage, offset, stride
        self.mask: StoredTensor | None = None

    def __setstate__(self, state: object, /) -> None:
        """Change nothing."""

    def read(self) -> torch.Tensor:
        """Its values. Raises PickleError where the storage is too short, OSError."""
        data = self._storage.read()
        flat = torch.frombuffer(data, dtype=self.dtype) if data else torch.empty(0).to(self.dtype)
        steps = zip(self.shape, self._stride, strict=True)
        last = self._offset + sum((length - 1) * stride for length, stride in steps)
        if math.prod(self.shape) and last >= flat.numel():
            raise PickleError("it is larger than its storage")
        values = flat.as_strided(self.shape, self._stride, self._offset)
        return values if self.mask is None else values * self.mask.read().to(values.dtype)


class Skipped:
    """What stands for an object that was not made.

    kind: its class or function, by name. items: what it was given by name. state: the same, at
    once; None without.
    """

    __slots__ = ("items", "state")
    kind: ClassVar[str] = ""

    def __new__(cls, *args: object, **named: object) -> Skipped:
        """The object, whatever it is given."""
        made = object.__new__(cls)
        made.items = {}
        made.state = None
        return made

    def __init__(self, *args: object, **named: object) -> None:
        self.items: dict[str, Any]
        self.state: Any

    def __call__(self, *args: object, **named: object) -> Skipped:
        return self

    def __setstate__(self, state: object, /) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object, /) -> None:
        if isinstance(key, str):
            self.items[key] = value

    def append(self, value: object, /) -> None:
        """Drop it, as `extend` and `add` do."""

    extend = add = append


class _Dictionary(dict[Any, Any]):
    """What stands for a dictionary with an order or a default."""

    __slots__ = ()

    def __init__(self, *args: object) -> None:
        pairs = args[-1] if args else ()
        super().__init__(cast(Any, pairs) if isinstance(pairs, (dict, list, tuple)) else ())

    def __setstate__(self, state: object, /) -> None:
        """Drop it."""


class _Storage:
    """A storage by its key. offset: where a view of it begins, in elements."""

    __slots__ = ("_read", "dtype", "key", "offset")

    def __init__(self, key: str, dtype: torch.dtype, offset: int, read: ReadStorage) -> None:
        self.key, self.dtype, self.offset, self._read = key, dtype, offset, read

    def __setstate__(self, state: object, /) -> None:
        """Change nothing."""

    def read(self) -> bytearray:
        """Its bytes."""
        return self._read(self.key)


class _Rebuild:
    """A function that makes a tensor, by its name."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __setstate__(self, state: object, /) -> None:
        """Change nothing."""

    def __call__(self, *args: Any) -> Any:
        if self._name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return args[0]
        if self._name == "_rebuild_from_type_v2":  # a tensor with attributes, or of a subclass
            function, kind, inner = args[:3]
            plain = isinstance(kind, type) and getattr(kind, "kind", "") in _PLAIN_TENSORS
            if isinstance(function, _Rebuild) and plain:
                return function(*inner)
            return kind()
        storage, offset, shape, stride = args[:4]
        if not isinstance(storage, _Storage):
            raise PickleError("a tensor has no storage")
        own = self._name == "_rebuild_tensor_v3"
        dtype = args[6] if own else storage.dtype
        numbers = (offset, *shape, *stride)
        whole = all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
        if not whole or len(shape) != len(stride) or len(shape) > _MOST_AXES:
            raise PickleError("a tensor has impossible sizes")
        if not isinstance(dtype, torch.dtype):
            raise PickleError("a tensor has no type")
        return StoredTensor(storage, storage.offset + offset, tuple(shape), tuple(stride), dtype)


_REBUILDS: Mapping[tuple[str, str], _Rebuild] = {
    (module, name): _Rebuild(name)
    for module, names in {
        "torch._utils": (
            "_rebuild_tensor",
            "_rebuild_tensor_v2",
            "_rebuild_tensor_v3",
            "_rebuild_parameter",
            "_rebuild_parameter_with_state",
        ),
        "torch._tensor": ("_rebuild_from_type_v2",),
    }.items()
    for name in names
}


class Unpickler(pickle.Unpickler):
    """Reads one pickle of torch.save.

    kinds: the objects that were skipped, by name. storages: key -> bytes of one of its elements.
    """

    def __init__(self, stream: BinaryIO, read: ReadStorage) -> None:
        super().__init__(stream, encoding="latin-1")
        self._read = read
        self._classes: dict[str, type[Skipped]] = {}
        self.storages: dict[str, int] = {}

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(self._classes)

    def find_class(self, module: str, name: str, /) -> Any:
        """What stands for a name. Raises PickleError for too many of them."""
        if (module, name) in _REBUILDS:
            return _REBUILDS[module, name]
        if module in ("torch", "torch.cuda", "torch.storage"):
            if name.endswith("Storage") and name.removesuffix("Storage") in _STORAGES:
                return _STORAGES[name.removesuffix("Storage")]
            if module == "torch" and name in _DTYPES:
                return _DTYPES[name]
        if module == "collections" and name in _DICTIONARIES:
            return _Dictionary
        kind = f"{module}.{name}"
        if kind not in self._classes:
            if len(self._classes) >= MAX_KINDS:
                raise PickleError(f"it has objects of more than {MAX_KINDS:,} kinds")
            self._classes[kind] = type("Skipped", (Skipped,), {"__slots__": (), "kind": kind})
        return self._classes[kind]

    def persistent_load(self, pid: Any, /) -> Any:
        """The storage, or the class of a module, that an identifier stands for."""
        if isinstance(pid, tuple) and len(pid) == 4 and pid[0] == "module":  # and its source
            return pid[1]
        if not isinstance(pid, tuple) or len(pid) < 5:
            raise PickleError("it refers to something that is no storage")
        _, dtype, key, _, _, *view = pid
        if not isinstance(dtype, torch.dtype):
            raise PickleError("a storage has no type")
        offset = 0
        if view and isinstance(view[0], tuple) and len(view[0]) == 3:
            offset = view[0][1]
        if type(offset) is not int or offset < 0:
            raise PickleError("a view of a storage begins nowhere")
        self.storages[str(key)] = dtype.itemsize
        return _Storage(str(key), dtype, offset, self._read)


def module_tensors(value: object, depth: int = 0) -> dict[str, Any] | None:
    """Parameters and buffers of a whole pickled module, by name; None for anything else."""
    state = value.state if isinstance(value, Skipped) else None
    if not isinstance(state, dict) or "_parameters" not in state or depth > 16:
        return None
    found: dict[str, Any] = {}
    for group in ("_parameters", "_buffers"):
        own = state.get(group)
        if isinstance(own, dict):
            found |= {str(key): one for key, one in own.items() if one is not None}
    inner = state.get("_modules")
    for name, module in inner.items() if isinstance(inner, dict) else ():
        for key, one in (module_tensors(module, depth + 1) or {}).items():
            found[f"{name}.{key}"] = one
    return found
