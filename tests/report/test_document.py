from __future__ import annotations

from t2t_deploy.report import BenchDocument
from t2t_deploy.report._document import batches_of, measured_cases

from .conftest import document_of, manifest_of, measured_row


def test_cases_have_one_number_at_all_batches(document: BenchDocument) -> None:
    cases = measured_cases(document)
    assert [(case.number, case.result.batch) for case in cases] == [
        *((1, 1), (2, 1), (3, 1), (1, 8), (2, 8), (3, 8)),
    ]
    assert [case.colour for case in cases] == ["c0", "c1", "c2"] * 2
    assert batches_of(cases) == [1, 8]
    assert [case.error for case in cases] == [None, 7e-7, 9.65e-4] * 2


def test_names_say_what_tells_cases_apart() -> None:
    rows = [measured_row(artifact=name) for name in ("a", "b", "c", "unknown")]
    known = {
        "a": manifest_of("a", target="cpu"),
        "b": manifest_of("b", target="portable"),
        "c": manifest_of("c", target="portable"),
    }
    names = [case.name for case in measured_cases(document_of(*rows, artifacts=known))]
    assert names == [
        *("ort-cpu fp32 cpu", "ort-cpu fp32 portable", "ort-cpu fp32 portable", "ort-cpu fp32"),
    ]
    known["c"] = manifest_of("c", variant="7")
    names = [case.name for case in measured_cases(document_of(*rows, artifacts=known))]
    assert names[0] == "14 ort-cpu fp32 cpu" and names[2] == "7 ort-cpu fp32"


def test_streams_are_series_of_their_own() -> None:
    rows = [measured_row(batch=batch, streams=streams) for batch in (1, 8) for streams in (1, 2)]
    cases = measured_cases(document_of(*rows))
    assert [(case.number, case.name) for case in cases] == [
        *[(1, "ort-cpu fp32"), (2, "ort-cpu fp32 2 streams")] * 2
    ]


def test_colours_begin_again_and_eager_keeps_its_own() -> None:
    rows = [measured_row(artifact=f"{index}.onnx") for index in range(8)]
    cases = measured_cases(document_of(*rows, measured_row("eager", "reference")))
    assert [case.colour for case in cases] == [*(f"c{n}" for n in range(1, 8)), "c1", "c0"]
