"""The text format of protobuf."""

from __future__ import annotations

from t2t_deploy.serving.triton._config import Word, map_entries, pbtxt


def test_all_kinds_of_fields() -> None:
    text = pbtxt(
        {
            "name": 'a "b" \\ ä\n\x01' + "2",
            "kind": Word("KIND_CPU"),
            "yes": True,
            "count": 3,
            "share": 0.5,
            "dims": [3, -1],
            "none": [],
            "inner": {"deep": {}},
            "step": [{"a": 1}, {"a": 2}],
            "entry": map_entries({"key": {"x": "y"}}),
        }
    )
    assert text.splitlines() == [
        'name: "a \\"b\\" \\\\ ä\\n\\0012"',
        "kind: KIND_CPU",
        "yes: true",
        "count: 3",
        "share: 0.5",
        "dims: [3, -1]",
        "inner {",
        "  deep {}",
        "}",
        "step {",
        "  a: 1",
        "}",
        "step {",
        "  a: 2",
        "}",
        "entry {",
        '  key: "key"',
        "  value {",
        '    x: "y"',
        "  }",
        "}",
    ]
