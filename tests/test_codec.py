"""Records as plain values and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import pytest

from t2t_deploy._codec import Rule, from_plain, to_plain


class Kind(str, Enum):
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Part:
    number: int
    samples: Annotated[tuple[float, ...], Rule(bool, "one sample or more")]

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"number {self.number} is below 0")


@dataclass(frozen=True, slots=True)
class Whole:
    name: str
    kind: Kind
    first: Part
    parts: tuple[Part, ...] = ()
    pair: tuple[int, str] | None = None
    ratio: float = 0.5
    ready: bool = False
    path: Path | None = None
    notes: Sequence[str | None] = ()
    rows: list[list[int]] = field(default_factory=list)
    counts: Mapping[str, int] = field(default_factory=dict)
    either: int | str | None = None
    rest: Any = None
    nothing: None = None


FULL = Whole(
    *("a", Kind.BAD, Part(1, (0.5, 2.0)), (Part(2, (1.0,)), Part(3, (4.0,))), (7, "x"), 1.5, True),
    *(Path("/tmp/a"), ("n", None), [[1], []], {"k": 3}, "text", {"any": [None, 1.5]}),
)
SHORT = Whole("b", Kind.GOOD, Part(0, (1.0,)))


def test_plain_values_have_the_fields_in_their_order() -> None:
    assert json.dumps(to_plain(FULL)) == (
        '{"name": "a", "kind": "bad", "first": {"number": 1, "samples": [0.5, 2.0]}, '
        '"parts": [{"number": 2, "samples": [1.0]}, {"number": 3, "samples": [4.0]}], '
        '"pair": [7, "x"], "ratio": 1.5, "ready": true, "path": "/tmp/a", "notes": ["n", null], '
        '"rows": [[1], []], "counts": {"k": 3}, "either": "text", "rest": {"any": [null, 1.5]}, '
        '"nothing": null}'
    )
    assert to_plain({Kind.GOOD: (1, None)}) == {"good": [1, None]}


@pytest.mark.parametrize("value", [object(), {1}, b"x", Part])
def test_a_value_without_a_plain_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="has no plain form"):
        to_plain(value)


@pytest.mark.parametrize("record", [FULL, SHORT])
def test_a_record_comes_back_from_json(record: Whole) -> None:
    assert from_plain(Whole, json.loads(json.dumps(to_plain(record))), exact=True) == record


def test_absent_fields_have_their_defaults() -> None:
    values = {"name": "b", "kind": "good", "first": {"number": 0, "samples": [1]}}
    assert from_plain(Whole, values) == SHORT


def test_an_int_becomes_the_float_that_is_declared() -> None:
    found = from_plain(Whole, to_plain(SHORT) | {"ratio": 2})
    assert (found.ratio, type(found.ratio)) == (2.0, float)


def test_unknown_fields_are_left_out_or_refused() -> None:
    values = to_plain(FULL) | {"later": 1}
    values["parts"][1]["later"] = 2
    assert from_plain(Whole, values) == FULL
    with pytest.raises(ValueError, match=r"^it has the unknown key 'later'$"):
        from_plain(Whole, values, exact=True)
    del values["later"]
    with pytest.raises(ValueError, match=r"^parts\[1\] has the unknown key 'later'$"):
        from_plain(Whole, values, exact=True)


WHOLE, FINITE = "expected a whole number", "expected a finite number"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 5}, "name is 5; expected text"),
        ({"name": None}, "name is None; expected text"),
        ({"path": 5}, "path is 5; expected text"),
        ({"ready": 1}, "ready is 1; expected true or false"),
        ({"nothing": 0}, "nothing is 0; expected null"),
        ({"kind": "fine"}, "kind is 'fine'; expected one of good, bad"),
        ({"kind": ["good"]}, "kind is ['good']; expected one of good, bad"),
        ({"ratio": "1"}, f"ratio is '1'; {FINITE}"),
        ({"ratio": True}, f"ratio is True; {FINITE}"),
        ({"ratio": float("nan")}, f"ratio is nan; {FINITE}"),
        ({"ratio": float("-inf")}, f"ratio is -inf; {FINITE}"),
        ({"ratio": 10**309}, f"ratio is 1{'0' * 119}...; {FINITE}"),
        ({"first": None}, "first is None; expected an object"),
        ({"first": {"samples": [1]}}, "first.number is missing"),
        ({"first": {"number": 1.0, "samples": [1]}}, f"first.number is 1.0; {WHOLE}"),
        ({"first": {"number": True, "samples": [1]}}, f"first.number is True; {WHOLE}"),
        ({"first": {"number": 1 << 63, "samples": [1]}}, f"first.number is {1 << 63}; {WHOLE}"),
        ({"first": {"number": -1, "samples": [1]}}, "first cannot be: number -1 is below 0"),
        ({"parts": "x"}, "parts is 'x'; expected a list"),
        (
            {"parts": [{"number": 1, "samples": [1, None]}]},
            f"parts[0].samples[1] is None; {FINITE}",
        ),
        (
            {"parts": [{"number": 1, "samples": []}]},
            "parts[0].samples is []; expected one sample or more",
        ),
        ({"pair": [1]}, "pair is [1]; expected a list of 2"),
        ({"pair": ["x", 1]}, f"pair[0] is 'x'; {WHOLE}"),
        ({"notes": [1]}, "notes[0] is 1; expected text"),
        ({"rows": [[1], ["x"]]}, f"rows[1][0] is 'x'; {WHOLE}"),
        ({"counts": ["k"]}, "counts is ['k']; expected an object"),
        ({"counts": {1: 1}}, "counts is {1: 1}; expected an object"),
        ({"counts": {"k": "x"}}, f"counts.k is 'x'; {WHOLE}"),
        ({"either": 1.5}, "either is 1.5; expected text"),
    ],
)
def test_the_first_value_that_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011  # compared below
        from_plain(Whole, to_plain(FULL) | change)
    assert str(refused.value) == message


@pytest.mark.parametrize("values", [[], None, "x"])
def test_what_is_no_object_is_no_record(values: object) -> None:
    with pytest.raises(ValueError, match=r"^it is .*; expected an object$"):
        from_plain(Part, values)


def test_an_annotation_that_plain_values_cannot_fill_is_a_mistake_in_the_record() -> None:
    @dataclass
    class Odd:
        one: bytes

    with pytest.raises(TypeError, match="cannot be read from plain values"):
        from_plain(Odd, {"one": "x"})


def test_a_record_made_anew_is_not_the_plain_values() -> None:
    values = to_plain(FULL)
    found = from_plain(Whole, values)
    values["counts"]["k"] = 4
    assert found == dataclasses.replace(FULL)
