"""Records, which are dataclasses, as plain values as in JSON, and back, by their annotations."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from t2t_deploy._untrusted import shortened

_T = TypeVar("_T")
_LARGEST = 1 << 63
_WORDS = {str: "text", Path: "text", bool: "true or false", NoneType: "null"}


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on a value beyond its type: ``Annotated[float, Rule(...)]``.

    holds: whether a value meets it. expected: the same in words, for the message.
    """

    holds: Callable[[Any], bool]
    expected: str


def to_plain(value: object) -> Any:
    """A record, or a value of a field, as plain values. Raises TypeError for others."""
    if isinstance(value, Enum):  # before str, which many are too
        return value.value
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no plain form")


def from_plain(kind: type[_T], values: Any, *, exact: bool = False) -> _T:
    """The record of ``kind`` with these plain values, as of `to_plain`.

    A field is text, bool, int, float, Any, an Enum, a Path, another record, a tuple, list or
    Mapping of such, one of them or None, or ``Annotated`` with a `Rule`.
    Missing fields get their defaults; unknown ones, as of a later version, are left out, or refused
    if ``exact``. Raises ValueError with the path and the value of the first that does not fit, as
    in "results[0].batch is 1.0; expected a whole number". A ValueError of the record itself gets
    its path, other errors pass.
    """
    try:
        record: _T = _record(kind, values, exact)
    except _MisfitError as err:
        raise ValueError(f"{err.path.removeprefix('.') or 'it'} {err}") from err.__cause__
    return record


class _MisfitError(Exception):
    """A value that does not fit, in words that follow its path."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.path = ""


def _misfit(value: object, expected: str) -> _MisfitError:
    return _MisfitError(f"is {shortened(value)}; expected {expected}")


def _at(path: str, hint: Any, value: Any, exact: bool) -> Any:
    """A value within another; an error's path gets the prefix ``path``."""
    try:
        return _read(hint, value, exact)
    except _MisfitError as err:
        err.path = path + err.path
        raise


def _read(hint: Any, value: Any, exact: bool) -> Any:
    if hint is float:
        # false for NaN, and for an int too large for a float
        if type(value) in (int, float) and abs(value) <= sys.float_info.max:
            return float(value)
        raise _misfit(value, "a finite number")
    if hint is int:
        if type(value) is int and abs(value) < _LARGEST:
            return value
        raise _misfit(value, "a whole number")
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        read = _read(arguments[0], value, exact)
        for rule in arguments[1:]:
            if isinstance(rule, Rule) and not rule.holds(read):
                raise _misfit(value, rule.expected)
        return read
    if origin in (Union, UnionType):
        return _one_of(arguments, value, exact)
    if origin in (tuple, list, Sequence):
        return _several(origin, arguments, value, exact)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _misfit(value, "an object")
        return {key: _at(f".{key}", arguments[1], one, exact) for key, one in value.items()}
    return _of_class(hint, value, exact)


def _of_class(kind: Any, value: Any, exact: bool) -> Any:
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, exact)
    if kind in _WORDS:
        if not isinstance(value, str if kind is Path else kind):
            raise _misfit(value, _WORDS[kind])
        return Path(value) if kind is Path else value
    if isinstance(kind, type) and issubclass(kind, Enum):
        with suppress(ValueError):
            return kind(value)
        raise _misfit(value, f"one of {', '.join(str(one.value) for one in kind)}")
    raise TypeError(f"{kind} cannot be read from plain values")


def _record(kind: Any, values: Any, exact: bool) -> Any:
    if not isinstance(values, Mapping):
        raise _misfit(values, "an object")
    hints = _hints(kind)
    if exact and (unknown := next((key for key in values if key not in hints), None)) is not None:
        raise _MisfitError(f"has the unknown key {shortened(unknown)}")
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.name in values:
            given[field.name] = _at(f".{field.name}", hints[field.name], values[field.name], exact)
        elif field.default is field.default_factory is dataclasses.MISSING:
            missing = _MisfitError("is missing")
            missing.path = f".{field.name}"
            raise missing
    try:
        return kind(**given)
    except ValueError as err:
        raise _MisfitError(f"cannot be: {err}") from err


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The annotations of a record's fields, all of which must exist at run time."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _one_of(hints: Sequence[Any], value: Any, exact: bool) -> Any:
    if value is None and NoneType in hints:
        return None
    *others, last = (hint for hint in hints if hint is not NoneType)
    for hint in others:
        with suppress(_MisfitError):
            return _read(hint, value, exact)
    return _read(last, value, exact)


def _several(kind: Any, hints: Sequence[Any], value: Any, exact: bool) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _misfit(value, "a list")
    if kind is not tuple or hints[-1] is Ellipsis:
        hints = (hints[0],) * len(value)
    elif len(value) != len(hints):
        raise _misfit(value, f"a list of {len(hints)}")
    read = (
        _at(f"[{index}]", hint, one, exact)
        for index, (hint, one) in enumerate(zip(hints, value, strict=True))
    )
    return list(read) if kind is list else tuple(read)
