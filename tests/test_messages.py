"""The words that messages are made of."""

from __future__ import annotations

import pytest

from t2t_deploy.errors import counted


@pytest.mark.parametrize(
    ("count", "noun", "words"),
    [
        (0, "picture", "0 pictures"),
        (1, "picture", "1 picture"),
        (2, "picture", "2 pictures"),
        (50_000, "picture", "50,000 pictures"),
        (1, "class", "1 class"),
        (10, "class", "10 classes"),
        (3, "class folder", "3 class folders"),
    ],
)
def test_so_many(count: int, noun: str, words: str) -> None:
    assert counted(count, noun) == words
