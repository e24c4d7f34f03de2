"""A recipe as text: tables of texts, numbers, truth values and lists of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2t_deploy._codec import to_plain
from t2t_deploy.errors import RecipeError


def recipe_text(tables: Mapping[str, Any], *, about: str = "") -> str:
    """A recipe with these tables, a list of them as ``[[name]]``, below lines of comment.

    Paths become absolute. Raises RecipeError for a value that no TOML file can hold.
    """
    parts = ["".join(f"# {line}".rstrip() + "\n" for line in about.splitlines())]
    for name, tables_of in tables.items():
        several = isinstance(tables_of, (list, tuple))
        for table in tables_of if several else (tables_of,):
            lines = [f"[[{name}]]" if several else f"[{name}]"]
            lines += [f"{key} = {_value(value)}" for key, value in table.items()]
            parts.append("\n".join(lines) + "\n")
    text = "\n".join(part for part in parts if part)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RecipeError(
            "a name of a file is no text, which a recipe cannot hold; rename it"
        ) from None
    return text


def _value(value: Any) -> str:
    """TOML's spelling is JSON's, but for a character that its texts must not hold as it is."""
    plain = to_plain(value.absolute() if isinstance(value, Path) else value)
    return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")
