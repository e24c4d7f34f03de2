"""One declaration of an option, for Python, the command line, recipes and their records alike."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_args, get_origin

from t2t_deploy._files import check_output
from t2t_deploy.errors import UsageError

AnyPath = str | os.PathLike[str]
AnyPaths = AnyPath | Iterable[AnyPath]
"""One, or any number of them."""

_LARGEST = 2**31 - 1
_P = ParamSpec("_P")
_R = TypeVar("_R")


class Role(Enum):
    """The effect of an option on the outcome of a command."""

    OPTION = "option"
    """Its value affects the outcome."""
    READS = "reads"
    """The content of its file or folder does."""
    WRITES = "writes"
    """It names an output."""
    SWITCH = "switch"
    """It does not affect the outcome."""


@dataclass(frozen=True, slots=True)
class Kind:
    """The values of an option.

    expected: in words. read: converts a value of Python or a recipe; raises ValueError.
    text: converts a word of the command line for ``read``. metavar: name of a value in --help.
    names: all possible values. bounds: of a whole number. path: ``any``, ``file`` or ``folder``.
    several: whether it may be repeated. word: writes a value that was read for the command line.
    """

    expected: str
    read: Callable[[Any], Any]
    text: Callable[[str], Any] = str
    metavar: str | None = None
    names: tuple[str, ...] = ()
    bounds: tuple[int, int | None] | None = None
    path: str | None = None
    several: bool = False
    word: Callable[[Any], str] = lambda value: str(getattr(value, "value", value))


@dataclass(frozen=True, slots=True)
class Opt:
    """How a parameter of a command is spelled, shown and recorded.

    kind: None is by the annotation. flags: spellings other than the parameter's name. shown: the
    command line's default, as shown. bare: the value of the option without one. each: help for each
    of the names of its kind, which become flags of their own. none: the value for None. recipe:
    whether a recipe may have it, or its table there. recorded: its name in a step's fingerprint,
    with a dot before a field of a value; empty is not recorded. later: added when records were
    kept already, so recorded only where it is not the default.
    """

    help: str | None = None
    kind: Kind | None = None
    role: Role = Role.OPTION
    flags: tuple[str, ...] = ()
    metavar: str | None = None
    shown: Any = None
    bare: str | None = None
    each: Callable[[str], str] | None = None
    none: Any = None
    recipe: bool | str = True
    recorded: str | None = None
    later: bool = False
    completions: Callable[[str], list[str]] | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a command: its declaration, with what the annotation adds."""

    name: str
    opt: Opt
    kind: Kind
    default: Any
    positional: bool

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty

    @property
    def option(self) -> str:
        """Its name on the command line and in recipes, without leading hyphens."""
        name = self.name.replace("_", "-")
        return f"no-{name}" if self.default is True else name

    def read(self, value: Any) -> Any:
        """The value as the command uses it. Raises UsageError."""
        if value is None and not self.required:
            return self.opt.none
        try:
            return self.kind.read(value)
        except (ValueError, OverflowError):
            raise _unexpected(self.name, value, self.kind) from None

    def words(self, value: Any) -> list[str]:
        """The words of the command line for a value that was read."""
        spelled = [self.kind.word(one) for one in (value if self.kind.several else (value,))]
        if self.positional:
            # a name that begins with a hyphen would be read as an option
            return [f"./{word}" if word.startswith("-") else word for word in spelled]
        if self.opt.each is not None:
            return [f"--{word}" for word in spelled]
        spelling = self.opt.flags[0] if self.opt.flags else f"--{self.option}"
        if self.kind is FLAG:
            return [spelling]
        return [word for one in spelled for word in (spelling, one)]


def command_words(
    function: Callable[..., Any], values: Mapping[str, Any], *, spelled: Collection[str] = ()
) -> list[str]:
    """The command line that gives a command these values, as it has read them.

    Files come after other options, arguments at the end. Defaults are left out, except those of the
    parameters ``spelled``.
    """
    files = (Role.READS, Role.WRITES)
    known = sorted(parameters(function).values(), key=lambda p: (p.positional, p.opt.role in files))
    words: list[str] = []
    for parameter in known:
        value = values[parameter.name]
        if value is not None and (value != parameter.default or parameter.name in spelled):
            words += parameter.words(value)
    return words


def parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The declared parameters of a command, in order."""
    return _parameters(inspect.unwrap(function))


@functools.cache
def _parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    declared = {}
    for name, parameter in inspect.signature(function).parameters.items():
        note = parameter.annotation
        if isinstance(note, str):
            if not note.startswith("Annotated["):
                note = function.__globals__.get(note)  # an alias
            else:
                note = eval(note, function.__globals__)
        opts = [one for one in getattr(note, "__metadata__", ()) if isinstance(one, Opt)]
        if opts:
            positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            kind = opts[0].kind or _kind_of(get_args(note)[0])
            declared[name] = Parameter(name, opts[0], kind, parameter.default, positional)
    return declared


def replaced(note: Any, **changes: Any) -> Opt:
    """The declaration in an annotation, with changes."""
    (opt,) = (one for one in note.__metadata__ if isinstance(one, Opt))
    return dataclasses.replace(opt, **changes)


def command(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function that converts its declared parameters by their kinds before it runs.

    Whether its outputs can be written is tried before the work as well. Raises ArtifactError.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, parameter in _parameters(function).items():
            bound.arguments[name] = parameter.read(bound.arguments[name])
        for name, parameter in _parameters(function).items():
            if parameter.opt.role is Role.WRITES and bound.arguments[name] is not None:
                check_output(bound.arguments[name], folder=parameter.kind.path == "folder")
        return function(*bound.args, **bound.kwargs)

    return wrapper


def path_of(value: AnyPath, name: str) -> Path:
    """A path that was given in Python. Raises UsageError; name: of the parameter, for it."""
    try:
        return _path(value)
    except ValueError:
        raise _unexpected(name, value, PATH) from None


def _unexpected(name: str, value: Any, kind: Kind) -> UsageError:
    return UsageError(f"{name} is {_plain(value)!r}; expected {kind.expected}")


def _plain(value: Any) -> Any:
    """What a path-like object stands for: text where it is one; other values as they are."""
    if isinstance(value, os.PathLike):
        with contextlib.suppress(TypeError):  # of one that does not keep its promise
            return os.fspath(value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError
    return value


def _path(value: Any) -> Path:
    return value if isinstance(value, Path) else Path(_text(_plain(value)))


def _each(value: Any) -> tuple[Any, ...]:
    """Values that were given alone or several together."""
    if isinstance(value, (str, bytes, os.PathLike)):
        return (value,)
    if not isinstance(value, Iterable):
        raise ValueError
    return tuple(value)


def _sources(value: Any) -> tuple[str, ...]:
    found = tuple(map(_plain, _each(value)))
    if not all(isinstance(one, str) for one in found):
        raise ValueError
    return found


class Among(tuple[Path, ...]):
    """All artifacts of a workspace.

    None of them is named, so one that does not fit is no error.
    """


def _paths(value: Any) -> tuple[Path, ...]:
    return value if isinstance(value, Among) else tuple(map(_path, _each(value)))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    return float(value)


def number(expected: str, holds: Callable[[float], bool], metavar: str | None = None) -> Kind:
    """A number of which something holds; ``expected`` says it in words."""

    def read(value: Any) -> float:
        found = _number(value)
        if not holds(found):
            raise ValueError
        return found

    return Kind(expected, read, float, metavar)


def whole(low: int, high: int | None = None) -> Kind:
    """A whole number from ``low`` to ``high``."""

    def read(value: Any) -> int:
        largest = _LARGEST if high is None else high
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= largest:
            raise ValueError
        return value

    to = "" if high is None else f" to {high}"
    return Kind(f"a whole number from {low}{to}", read, int, bounds=(low, high))


def choice(*names: str | Enum, of: type[Enum] | None = None, absent: str | None = None) -> Kind:
    """One of these words; ``of`` an enumeration, all of its values without words.

    absent: the word that means None.
    """
    words = tuple(str(n.value) if isinstance(n, Enum) else n for n in (names or of or ()))

    def read(value: Any) -> Any:
        word = value.value if isinstance(value, Enum) else value
        if not isinstance(word, str) or word not in words:
            raise ValueError
        if word == absent:
            return None
        return word if of is None else of(word)

    return Kind(f"one of {', '.join(map(repr, words))}", read, names=words)


def several(kind: Kind) -> Kind:
    """Values of a kind: a list, or one alone."""

    def read(value: Any) -> tuple[Any, ...]:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        return tuple(dict.fromkeys(kind.read(one) for one in values))

    expected = f"{kind.expected}, or a list of such"
    return dataclasses.replace(kind, expected=expected, read=read, several=True)


def ending(*suffixes: str) -> Kind:
    """A path of a file of one of these kinds."""

    def read(value: Any) -> Path:
        path = _path(value)
        if path.suffix.lower() not in suffixes:
            raise ValueError
        return path

    return Kind(f"a path that ends in {' or '.join(suffixes)}", read, path="file")


def _batch(value: Any) -> int | None:
    return None if value == "dynamic" else int(COUNT.read(value))


def _size(value: Any) -> int | tuple[int, int]:
    sides = value.lower().split("x") if isinstance(value, str) else value
    if isinstance(sides, (list, tuple)):
        height, width = (int(COUNT.read(int(side))) for side in sides)
        return height if height == width else (height, width)
    return int(COUNT.read(sides))


def _device(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    kind, _, ordinal = _text(value).partition(":")
    if kind != "cuda" or not (ordinal.isascii() and ordinal.isdecimal()) or len(ordinal) > 4:
        raise ValueError
    return int(ordinal)


def _number_or_word(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() else text


TEXT = Kind("a text", _text)
PATH = Kind("a path, as text", _path, path="any")
FILE = Kind("a path, as text", _path, path="file")
FOLDER = Kind("a path, as text", _path, path="folder")
PATHS = Kind("a path, or a list of such", _paths, path="any", several=True)
SOURCES = Kind("a path, a pattern or a URI, or a list of such", _sources, several=True)
FLAG = Kind("true or false", _flag)
NUMBER = Kind("a number", _number, float)
COUNT = whole(1)
BATCH = Kind("'dynamic' or a whole number from 1", _batch, _number_or_word, "dynamic|N")
BATCHES = Kind(
    "a whole number from 1, or a list of such",
    several(COUNT).read,
    lambda text: [_number_or_word(word.strip()) for word in text.split(",")],
    "N,N,...",
    word=lambda batches: ",".join(map(str, batches)),
)
SIZE = Kind(
    "a whole number from 1, or height and width as in 128x256",
    _size,
    _number_or_word,
    "N|HxW",
    word=lambda size: "x".join(map(str, size)) if isinstance(size, tuple) else str(size),
)
DEVICE = Kind(
    "'cuda:0', 'cuda:1' and so on", _device, metavar="cuda:N", word=lambda index: f"cuda:{index}"
)


def _kind_of(note: Any) -> Kind:
    """The kind of a plain annotation such as ``int | None``."""
    members = [one for one in (get_args(note) or (note,)) if one is not type(None)]
    for member in members:
        if isinstance(member, type) and issubclass(member, Enum):
            return choice(of=member)
    if os.PathLike in (get_origin(member) for member in members):
        return PATH
    kinds: Mapping[Any, Kind] = {bool: FLAG, int: COUNT, float: NUMBER, str: TEXT}
    return kinds[members[0]]
