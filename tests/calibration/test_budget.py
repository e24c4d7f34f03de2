"""The search for the layers that go back to float, with losses that are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2t_deploy.calibration import (
    BudgetSearch,
    Decision,
    LayerGroup,
    Loss,
    Trial,
    layer_groups,
    search_budget,
)

from .graphs import layer

LIMIT = Loss(1.0, 0.1)


def groups_of(count: int) -> list[LayerGroup]:
    """Each of two layers, the later the more multiply-adds."""
    return [LayerGroup(f"t{i}", (f"a{i}", f"b{i}"), 10 * (i + 1)) for i in range(count)]


def number(group: LayerGroup) -> int:
    return int(group.source[1:])


class Losses:
    """The loss by how many groups went back; what was asked is kept."""

    def __init__(self, by_count: Callable[[int], Loss]) -> None:
        self.by_count = by_count
        self.asked: list[list[str]] = []

    def __call__(self, names: Sequence[str]) -> Loss:
        self.asked.append(list(names))
        return self.by_count(len(names) // 2)


def searched(
    count: int,
    by_count: Callable[[int], Loss],
    *,
    total: int | None = None,
    cost: Callable[[LayerGroup], float] = number,
) -> tuple[BudgetSearch, Losses]:
    """total: the groups' own multiply-adds unless given. cost: a later group's is larger."""
    losses = Losses(by_count)
    groups = groups_of(count)
    macs = sum(group.macs for group in groups) if total is None else total
    return search_budget(groups, macs, LIMIT, cost_of=cost, loss_of=losses), losses


def enough(needed: int) -> Callable[[int], Loss]:
    """Within the limit from so many groups on."""
    return lambda count: Loss(1.0 if count >= needed else 1.5, 0.1)


def test_layers_that_read_one_tensor_are_one_group() -> None:
    decisions = [
        Decision(layer("q", "norm1"), True, ""),
        Decision(layer("fc1", "norm2", rows=7), True, ""),
        Decision(layer("k", "norm1"), True, ""),
        Decision(layer("gate", "norm1"), False, ""),
        Decision(layer("head", "mean"), False, ""),
    ]
    assert layer_groups(decisions) == (
        LayerGroup("norm1", ("q", "k"), 2 * 4 * 3 * 5),
        LayerGroup("norm2", ("fc1",), 7 * 3 * 5),
    )


def test_groups_are_ordered_by_cost_and_of_equal_ones_the_first_comes_first() -> None:
    costs = [0.1, 0.3, 0.1, 0.7, 0.3]
    asked: list[int] = []

    def cost(group: LayerGroup) -> float:
        asked.append(number(group))
        return costs[number(group)]

    found, _ = searched(5, lambda _: Loss(0, 0), cost=cost)
    assert asked == [0, 1, 2, 3, 4]  # each once
    assert [number(group) for group in found.order] == [3, 1, 4, 0, 2]
    assert found.costs == (0.7, 0.3, 0.3, 0.1, 0.1)


def test_nothing_goes_back_where_the_budget_is_met() -> None:
    found, losses = searched(6, enough(0))
    assert found.met and found.returned == ()
    assert found.trials == (Trial(0, 1.0, 0.1, 1.0),) and found.chosen == found.trials[0]
    assert losses.asked == [[]]


@pytest.mark.parametrize("count", [2, 3, 8, 13])
def test_the_fewest_groups_that_meet_the_budget_go_back_the_costliest_first(count: int) -> None:
    for needed in range(count):
        found, _ = searched(count, enough(needed))
        assert found.met and found.chosen.returned == needed
        gone = range(count - 1, count - 1 - needed, -1)
        assert found.returned == tuple(name for i in gone for name in (f"a{i}", f"b{i}"))


def test_what_is_left_in_8_bits_is_a_share_of_all_multiply_adds() -> None:
    found, _ = searched(4, enough(2), total=200)  # the groups': 10, 20, 30 and 40
    shares = {trial.returned: trial.share for trial in found.trials}
    assert shares == {0: 100 / 200, 1: 60 / 200, 2: 30 / 200, 3: 10 / 200}


@pytest.mark.parametrize("needed", [1, 50, 99])
def test_it_is_found_by_bisection_and_nothing_is_tried_twice(needed: int) -> None:
    found, losses = searched(100, enough(needed))
    counts = [len(names) // 2 for names in losses.asked]
    assert counts[:3] == [0, 99, 49]
    assert len(counts) == len(set(counts)) <= 2 + math.ceil(math.log2(99))
    assert [trial.returned for trial in found.trials] == sorted(counts)


def test_a_trial_has_the_costliest_layers_in_float() -> None:
    _, losses = searched(3, enough(2))
    assert losses.asked == [[], ["a2", "b2", "a1", "b1"], ["a2", "b2"]]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_last_group_never_goes_back(count: int) -> None:
    """Nothing would be left in 8 bits."""
    found, losses = searched(count, enough(count))
    assert not found.met
    assert max(len(names) // 2 for names in losses.asked) == count - 1
    assert len(found.returned) <= 2 * (count - 1)
    assert found.chosen.share > 0


@pytest.mark.parametrize(
    ("count", "by_count", "met", "returned"),
    [
        # the answers are right everywhere; the logits are not close enough
        (9, lambda n: Loss(0.0, 0.2 if n < 4 else 0.1), True, 4),
        # a loss that is no number meets no budget
        (4, lambda n: Loss(0 if n >= 2 else math.nan, 0.0), True, 2),
        (4, lambda n: Loss(0.0, 0 if n >= 2 else math.nan), True, 2),
        # where none meets it, the smallest drop; there is no bisection towards what is not there
        (8, {0: Loss(3.0, 0.0), 7: Loss(5.0, 0.0)}.__getitem__, False, 0),
        (8, {0: Loss(5.0, 0.0), 7: Loss(3.0, 0.0)}.__getitem__, False, 7),
        # of equal drops the smaller error, then fewer groups
        (4, lambda n: Loss(3.0, 0.5 - n / 10), False, 3),
        (4, lambda n: Loss(3.0, 0.5), False, 0),
    ],
)
def test_the_trial_that_is_chosen(
    count: int, by_count: Callable[[int], Loss], met: bool, returned: int
) -> None:
    found, losses = searched(count, by_count)
    assert (found.met, found.chosen.returned) == (met, returned)
    assert len(found.returned) == 2 * returned
    assert met or len(losses.asked) == 2


@pytest.mark.parametrize(
    ("drop", "rel_l2", "met"),
    [(1.0, 0.1, True), (1.0, 0.11, False), (1.01, 0.1, False), (-2.0, 0.5, False), (9, 0, False)],
)
def test_drop_and_error_both_count_and_may_equal_their_limit(
    drop: float, rel_l2: float, met: bool
) -> None:
    found, losses = searched(4, lambda _: Loss(drop, rel_l2))
    assert found.met == met
    assert len(losses.asked) == (1 if met else 2)


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_what_is_met_is_a_trial_that_was_made(good: list[bool]) -> None:
    """Also where a group that goes back makes it worse, which bisection does not expect."""
    found, losses = searched(len(good), lambda count: Loss(0.0 if good[count] else 2.0, 0.0))
    assert found.chosen in found.trials
    assert found.met == (good[0] or good[-1])
    if found.met:
        assert good[found.chosen.returned]
        assert found.chosen.returned == 0 or not good[found.chosen.returned - 1]
    assert len(losses.asked) == len(found.trials)


@pytest.mark.parametrize("drop", [0.0, 2.0])
def test_without_groups_nothing_goes_back(drop: float) -> None:
    found, losses = searched(0, lambda _: Loss(drop, 0.0))
    assert found.chosen == Trial(0, drop, 0.0, 0.0)
    assert found.trials == (found.chosen,) and losses.asked == [[]]
    assert found.met == (drop == 0)
