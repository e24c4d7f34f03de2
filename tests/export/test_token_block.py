"""Token blocks in deploy form against the reference block in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from t2t_deploy.export import _token_block
from t2t_deploy.export._soft_split import Products
from t2t_deploy.export._token_block import (
    EntropyPerformer,
    PlainPerformer,
    SoftmaxPerformer,
    StablePerformer,
    TokenTransformer,
    mean_gain,
)
from t2t_deploy.model import PerformerBlock, TransformerBlock
from t2t_deploy.model._random import random_tensor

from .conftest import error

TOKENS, INPUT, WIDTH = 48, 27, 64
SAFE_FORMS = (StablePerformer, SoftmaxPerformer, EntropyPerformer)
FORMS = (PlainPerformer, *SAFE_FORMS)


def with_seeded_weights(block: Any, gain: float = 1.0) -> Any:
    """Keys and queries of a performer are ``gain`` times as large as usual."""
    state = {
        key: torch.from_numpy(random_tensor(f"attention.{key}", value.shape, 0))
        for key, value in block.state_dict().items()
    }
    for name in ("kqv.weight", "kqv.bias") if gain != 1 else ():
        state[name][: 2 * WIDTH] *= gain
    block.load_state_dict(state)
    return block


def performer(gain: float = 1.0) -> PerformerBlock:
    block: PerformerBlock = with_seeded_weights(PerformerBlock(INPUT, WIDTH), gain)
    return block


def aligned_performer(length: float) -> PerformerBlock:
    """Keys near one row of w, queries near another, so that plain features are very large."""
    block = performer(0.3)
    with torch.no_grad():
        rows = functional.normalize(block.w, dim=1) * length
        block.kqv.bias[:WIDTH] = rows[0]
        block.kqv.bias[WIDTH : 2 * WIDTH] = rows[1]
    return block


def exact(block: torch.nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        result: Tensor = copy.deepcopy(block).double()(x.double())
    return result


def products_for(deployed: Any, x: Tensor, dtype: torch.dtype) -> Products:
    """What a soft split hands a block: normalised tokens times its consumers' weights."""
    normal = functional.layer_norm(x.double(), x.shape[-1:])
    values = tuple((normal @ c.weight.T).to(dtype) for c in deployed.consumers)
    return Products(values, None)


def run(form: Any, block: Any, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The result in a type, finite."""
    deployed = make(form, block, dtype)
    with torch.inference_mode():
        result: Tensor = deployed(products_for(deployed, x, dtype))
    assert result.dtype is dtype and result.isfinite().all()
    return result


def make(form: Any, block: Any, dtype: torch.dtype = torch.float32) -> Any:
    if form is PlainPerformer:
        return PlainPerformer(block, dtype)
    return form(block, TOKENS, dtype)


PICTURE = torch.randn(2, TOKENS, INPUT, generator=torch.Generator().manual_seed(1))


def without_attention(block: PerformerBlock) -> PerformerBlock:
    """The same block, its attended values replaced by zeros."""
    cut = copy.deepcopy(block)
    cut.proj.weight.data.zero_()
    return cut


@pytest.mark.parametrize(
    ("gain", "epsilon_alone"), [(1.0, False), (2.0, False), (3.0, True), (5.0, True), (10.0, True)]
)
def test_what_each_stress_covers(gain: float, epsilon_alone: bool) -> None:
    """Without attention the result changes; from gain 3 on denominators are epsilon alone.

    There features vanish, so these gains test epsilon and ranges, not attention;
    `aligned_performer` tests attention with huge features.
    """
    block = performer(gain)
    changed = error(exact(without_attention(block), PICTURE), exact(block, PICTURE))
    assert (changed < 1e-3) is epsilon_alone


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)])
def test_a_block_answers_in_the_type_it_was_made_for(
    form: Any, dtype: torch.dtype, most: float
) -> None:
    block = performer(0.3)
    assert error(run(form, block, PICTURE, dtype), exact(block, PICTURE)) < most


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("gain", [1.0, 3.0, 5.0, 10.0])
def test_performer_forms_equal_the_block(form: Any, gain: float) -> None:
    block = performer(gain)
    wanted = exact(block, PICTURE)
    assert error(run(form, block, PICTURE), wanted) < 2e-6
    if form is not PlainPerformer:  # the others hold in half precision
        for dtype, most in ((torch.float16, 3e-3), (torch.bfloat16, 2e-2)):
            assert error(run(form, block, PICTURE, dtype), wanted) < most


@pytest.mark.parametrize("form", SAFE_FORMS)
@pytest.mark.parametrize("length", [3.0, 32**0.5, 8.0])
def test_safe_performers_hold_where_features_are_huge(form: Any, length: float) -> None:
    block = aligned_performer(length)
    wanted = exact(block, PICTURE)
    assert error(exact(without_attention(block), PICTURE), wanted) > 1e-2
    assert error(run(form, block, PICTURE), wanted) < 2e-6
    assert error(run(form, block, PICTURE, torch.float16), wanted) < 3e-3


def test_plain_features_leave_half_precision() -> None:
    block = aligned_performer(32**0.5)
    k, q, _ = block.kqv(block.norm1(PICTURE)).split(WIDTH, dim=-1)
    largest = max(float(block.features(u).detach().max()) for u in (k, q))
    assert largest > 3e5


def test_one_shift_for_the_whole_picture_would_underflow() -> None:
    """Why the shift is per feature: keys favour one feature, queries another."""
    block = aligned_performer(6.0)
    k, q, v = block.kqv(block.norm1(PICTURE)).split(WIDTH, dim=-1)

    def log_features(u: Tensor) -> Tensor:
        return u @ block.w.T - u.square().sum(-1, keepdim=True) / 2

    a_k, a_q = log_features(k), log_features(q)
    kp = torch.exp(a_k - a_k.amax(dim=(1, 2), keepdim=True)).half()
    qp = torch.exp(a_q - a_q.amax(dim=2, keepdim=True)).half()
    out = (qp @ (kp.transpose(1, 2) @ v.half())) / (qp @ kp.sum(1).unsqueeze(-1))
    assert not out.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_epsilon_is_kept_and_its_loss_would_show(
    form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With larger keys and queries denominators come near 1e-8."""
    block = performer(4.0)
    wanted = exact(block, PICTURE)
    assert error(run(form, block, PICTURE), wanted) < 2e-6
    monkeypatch.setattr(_token_block, "PERFORMER_EPSILON", 1e-30)
    assert error(run(form, block, PICTURE), wanted) > 1e-3


@pytest.mark.parametrize("form", [SoftmaxPerformer, EntropyPerformer])
@pytest.mark.parametrize("mistake", ["log of the sums", "projected bias", "query norms"])
def test_a_wrong_softmax_performer_is_caught(form: Any, mistake: str) -> None:
    """Each thing the form moves elsewhere, left where it was moved to but not taken from."""
    block = performer(2.0 if mistake == "query norms" else 1.0)
    wanted = exact(block, PICTURE)
    deployed = make(form, block)
    products = products_for(deployed, PICTURE, torch.float32)
    with torch.inference_mode():
        assert error(deployed(products), wanted) < 2e-6
        if mistake == "log of the sums":
            deployed.w_transposed.copy_(deployed.w_transposed.flip(1))
        elif mistake == "projected bias":
            deployed.means_bias.zero_()
        else:
            deployed.log_epsilon += 3.0
        assert error(deployed(products), wanted) > 1e-4


def test_an_entropy_performer_leaves_out_tokens_without_weight() -> None:
    """A weight of 0 has no logarithm, and 0 times infinity is no number."""
    block = aligned_performer(8.0)
    with torch.no_grad():
        block.kqv.weight[:WIDTH] *= 20
    keys: list[Tensor] = []
    softmax = functional.softmax

    def kept(x: Tensor, dim: int) -> Tensor:
        keys.append(softmax(x, dim))
        return keys[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "softmax", kept)
        assert error(run(EntropyPerformer, block, PICTURE), exact(block, PICTURE)) < 2e-6
    assert (keys[0] == 0).any()


def transformer() -> TransformerBlock:
    block: TransformerBlock = with_seeded_weights(TransformerBlock(INPUT, WIDTH))
    return block


@pytest.mark.parametrize("groups", [1, 2, 4, 6])
def test_groups_of_queries_change_nothing(groups: int) -> None:
    block = transformer()
    deployed = TokenTransformer(block, TOKENS, torch.float32, groups=groups)
    with torch.inference_mode():
        found = deployed(products_for(deployed, PICTURE, torch.float32))
    assert error(found, exact(block, PICTURE)) < 1e-6


def test_groups_that_see_their_own_keys_only_are_caught() -> None:
    """The wrong version: keys and values cut like the queries."""
    block = transformer()
    deployed = TokenTransformer(block, TOKENS, torch.float32, groups=2)
    products = products_for(deployed, PICTURE, torch.float32)
    q, k, v = (p + b for p, b in zip(products.values, deployed.biases, strict=True))
    q, k, v = (t.reshape(2, 2, TOKENS // 2, WIDTH) for t in (q, k, v))
    attended = (q @ k.transpose(2, 3)).softmax(-1) @ v
    wrong = deployed.tail(v.reshape(2, TOKENS, WIDTH) + deployed.proj(attended.flatten(1, 2)))
    assert error(wrong, exact(block, PICTURE)) > 1e-2


def test_a_pending_rstd_is_applied_by_every_block() -> None:
    for form, block in (
        (PlainPerformer, performer()),
        (StablePerformer, performer()),
        (SoftmaxPerformer, performer()),
        (TokenTransformer, transformer()),
    ):
        deployed = make(form, block)
        done = products_for(deployed, PICTURE, torch.float32)
        rstd = torch.rand(2, TOKENS, 1) + 0.5
        pending = Products(tuple(value / rstd for value in done.values), rstd)
        with torch.inference_mode():
            torch.testing.assert_close(deployed(pending), deployed(done), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", SAFE_FORMS)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
def test_a_picture_does_not_depend_on_its_neighbours(
    form: Any, dtype: torch.dtype, most: float
) -> None:
    """The wrong version: a maximum over the batch, under which features of long keys vanish.

    Products of a batch may be added up in another order, which changes the last bits.
    """
    deployed = make(form, performer(1.0), dtype)
    short = products_for(deployed, PICTURE[:1], dtype)
    long = Products(tuple(value * 30 for value in short.values), None)
    pairs = zip(long.values, short.values, strict=True)
    both = Products(tuple(torch.cat(pair) for pair in pairs), None)
    with torch.inference_mode():
        wanted, found = deployed(long), deployed(both)[:1]
    assert error(found, wanted.double()) < most


def test_weights_of_means_are_lifted_by_the_power_of_two_next_to_the_root_of_their_count() -> None:
    counts = {1: 1, 2: 1, 3: 2, 16: 4, 48: 8, 784: 32, 3136: 64}
    assert {count: mean_gain(count) for count in counts} == counts
    for form in SAFE_FORMS:
        assert make(form, performer(), torch.float16).gain == mean_gain(TOKENS)
    assert make(SoftmaxPerformer, performer()).gain == 1.0  # float32 needs none: one operator less


def test_a_token_does_not_depend_on_the_features_of_others() -> None:
    """The wrong version: one maximum for all queries, beside which those of others vanish."""
    deployed = make(StablePerformer, performer())
    zeros = torch.zeros(2, TOKENS, deployed.num_features)
    queries = zeros.clone()
    queries[0, 0, 0] = 300.0
    _, weights = deployed.weights(zeros, queries, torch.zeros(2, TOKENS, 2 * WIDTH))
    equal = torch.full_like(zeros, 1 / deployed.num_features)
    equal[0, 0] = torch.eye(deployed.num_features)[0]
    torch.testing.assert_close(weights, equal)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("form", "block"),
    [(form, performer()) for form in FORMS] + [(TokenTransformer, transformer())],
)
def test_all_that_is_stored_is_of_the_type_it_computes_in(
    form: Any, block: Any, dtype: torch.dtype
) -> None:
    """Exponents are float32; what they are projected or summed with, in the block, is too."""
    exponents = {"w", "w_transposed", "token_ones", "value_ones"}
    for name, tensor in make(form, block, dtype).state_dict().items():
        assert tensor.dtype == (torch.float32 if name in exponents else dtype), name
