"""Which combinations of strategies are worth comparing, and what they are called."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from t2t_deploy.export import PerformerForm, SoftSplitForm, Strategies

if TYPE_CHECKING:
    pass

_U, _F, _C = SoftSplitForm.UNFOLD, SoftSplitForm.FOLDED, SoftSplitForm.CENTRED
_SOFT_SPLITS = (
    *((form,) * 3 for form in (_U, SoftSplitForm.CONV, _F, _C)),
    (SoftSplitForm.SHIFTED, _U, _U),
    (_C, _U, _U),
    (_C, _F, _F),
    (_U, _F, _F),
)


def strategies_to_compare(default: Strategies, *, performer: bool) -> tuple[Strategies, ...]:
    """The combinations worth seeing beside a target's default, which is one of them.

    performer: the token blocks are performers, whose other forms are compared on the default's soft
    splits; else it is the number of query groups that is.
    """
    splits = dict.fromkeys((*_SOFT_SPLITS, default.soft_split))
    found = [dataclasses.replace(default, soft_split=split) for split in splits]
    if performer:
        found += [dataclasses.replace(default, performer=form) for form in PerformerForm]
    else:
        found += [dataclasses.replace(default, query_groups=groups) for groups in (1, 2)]
    return tuple(dict.fromkeys(found))


def strategy_name(strategies: Strategies, *, performer: bool) -> str:
    """A combination in few words, of them only what makes a difference to the token blocks."""
    groups = strategies.query_groups
    blocks = f"{groups} query group{'s' if groups > 1 else ''}"
    return f"{split_name(strategies)}, {strategies.performer.value if performer else blocks}"


def split_name(strategies: Strategies) -> str:
    """The soft splits as ``--soft-split`` takes them; one form for all three stands once."""
    forms = [form.value for form in strategies.soft_split]
    return forms[0] if len(set(forms)) == 1 else ",".join(forms)
