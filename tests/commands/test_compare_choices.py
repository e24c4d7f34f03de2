"""Which combinations `export --compare` shows, and what they are called."""

from __future__ import annotations

import dataclasses

import pytest

from t2t_deploy.commands._strategy_grid import strategies_to_compare, strategy_name
from t2t_deploy.export import PerformerForm, SoftSplitForm, Strategies, choose_strategies
from t2t_deploy.types import Target

# the forms that are for the first split alone are not among them
FIRST_ONLY = (SoftSplitForm.SHIFTED, SoftSplitForm.NORMALISED)
UNIFORM = {(form,) * 3 for form in SoftSplitForm if form not in FIRST_ONLY}
# Each is one of the eight soft splits to see, so that no default makes a ninth, save TensorRT's.
DEFAULTS = [choose_strategies(target) for target in Target]


@pytest.mark.parametrize("default", DEFAULTS)
@pytest.mark.parametrize("performer", [True, False])
def test_the_combinations(default: Strategies, performer: bool) -> None:
    found = strategies_to_compare(default, performer=performer)
    splits = 9 if default.soft_split[0] is SoftSplitForm.NORMALISED else 8
    assert len(found) == len(set(found)) == splits + (2 if performer else 1)
    assert found.count(default) == 1
    same = [s for s in found if dataclasses.replace(s, soft_split=default.soft_split) == default]
    assert {s.soft_split for s in same} > UNIFORM and len(same) == splits
    others = set(found) - set(same)
    assert {other.soft_split for other in others} == {default.soft_split}
    if performer:
        forms = {other.performer for other in others}
        assert forms == set(PerformerForm) - {default.performer}
    else:
        (other,) = others
        assert {other.query_groups, default.query_groups} == {1, 2}


def test_a_default_that_is_no_other_row_is_one_more() -> None:
    odd = (SoftSplitForm.CONV, SoftSplitForm.UNFOLD, SoftSplitForm.CONV)
    default = Strategies(odd, PerformerForm.STABLE)
    assert strategies_to_compare(default, performer=True).count(default) == 1


def test_a_combination_in_words() -> None:
    unfold, conv = SoftSplitForm.UNFOLD, SoftSplitForm.CONV
    one = Strategies((unfold,) * 3, PerformerForm.PLAIN)
    assert strategy_name(one, performer=True) == "unfold, plain"
    assert strategy_name(one, performer=False) == "unfold, 1 query group"
    mixed = Strategies((conv, unfold, conv), PerformerForm.STABLE, query_groups=2)
    assert strategy_name(mixed, performer=True) == "conv,unfold,conv, stable"
    assert strategy_name(mixed, performer=False) == "conv,unfold,conv, 2 query groups"
