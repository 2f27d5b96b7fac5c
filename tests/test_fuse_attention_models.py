"""Attention of Hugging Face models written out (``eager``), of sizes known at run time, in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.nn import functional as F

from mplan.capture import capture
from mplan.ir.graph import Graph, Op
from tests.attention_variants import VARIANTS, H, rand
from tests.hf_models import LENGTH, build
from tests.test_fuse_attention import Model, attention, count, fused, outputs

CAUSAL = ("gpt2", "llama", "qwen3", "opt", "gpt_neox", "falcon", "bloom", "mpt")


def attentions(graph: Graph) -> list[Op]:
    return [op for op in graph.ops if op.kind == "mplan.attention"]


def run_model(name: str, *args: torch.Tensor) -> tuple[list[Op], list[str]]:
    """The attention of a model and the notes; outputs before and after must agree."""
    found = capture(build(name), args)
    graph, notes = fused(found)
    expected, actual = outputs(found.graph, found, args), outputs(graph, found, args)
    torch.testing.assert_close(actual[0], expected[0], atol=2e-5, rtol=1e-4)
    return attentions(graph), notes


def tokens() -> torch.Tensor:
    return torch.randint(0, 50, (2, LENGTH))


@pytest.mark.parametrize("name", CAUSAL)
def test_decoders_are_causal_without_a_mask(name: str) -> None:
    ops, notes = run_model(name, tokens())
    assert len(ops) == 2
    assert notes == []
    assert all(op.arg("is_causal") for op in ops)
    alibi = name in ("bloom", "mpt")
    assert all((op.arg("attn_mask") is not None) == alibi for op in ops)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_padding_masks_are_handed_over(name: str) -> None:
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, :3] = 0
    ops, notes = run_model(name, tokens(), mask)
    assert (len(ops), notes) == (2, [])
    assert all(op.arg("attn_mask") is not None for op in ops)


def test_groups_of_heads_stay_groups() -> None:
    assert all(op.arg("enable_gqa") for op in run_model("llama", tokens())[0])


def test_sliding_window_is_a_mask() -> None:
    ops, notes = run_model("mistral", tokens())
    assert (len(ops), notes) == (2, [])
    assert all(op.arg("attn_mask") is not None for op in ops)


def test_bert_sees_everything() -> None:
    ops, notes = run_model("bert", tokens())
    assert (len(ops), notes) == (2, [])
    assert all(op.arg("attn_mask") is None and not op.arg("is_causal") for op in ops)


def test_t5_has_position_bias_and_a_causal_decoder() -> None:
    ops, notes = run_model("t5", tokens())
    assert (len(ops), notes) == (6, [])
    assert sorted(bool(op.arg("is_causal")) for op in ops) == [False] * 4 + [True] * 2
    assert sum(op.arg("attn_mask") is not None for op in ops) == 4


def test_gemma2_says_that_its_soft_cap_is_in_the_way() -> None:
    ops, notes = run_model("gemma2", tokens())
    assert ops == []
    assert len(notes) == 2
    assert all("soft cap" in note and "self_attn" in note for note in notes)


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize(
    "name", ["scale_divides_scores", "transposed_throughout", "grouped_by_expand", "softmax_in_pieces"]
)
def test_sizes_known_at_run_time(name: str, decompose: bool) -> None:
    class Three(nn.Module):
        def forward(self, q: Any, k: Any, v: Any) -> Any:
            return VARIANTS[name][0](q, k, v)

    batch, rows, keys = Dim("b", min=1, max=8), Dim("l", min=2, max=64), Dim("s", min=2, max=64)
    shapes = ({0: batch, 2: rows}, {0: batch, 2: keys}, {0: batch, 2: keys})
    found = capture(Three(), VARIANTS[name][1](), dynamic_shapes=shapes, decompose=decompose)
    graph, notes = fused(found)
    assert (count(graph), notes) == (1, [])
    heads = 2 if name.startswith("grouped") else H
    inputs = (rand(3, H, 11, 8), rand(3, heads, 4, 8), rand(3, heads, 4, 9))
    expected, actual = outputs(found.graph, found, inputs), outputs(graph, found, inputs)
    torch.testing.assert_close(actual[0], expected[0])


def tril(n: Any) -> Any:
    return torch.ones(n, n, dtype=torch.bool).tril()


def ge(n: Any) -> Any:
    return torch.arange(n)[:, None] >= torch.arange(n)[None, :]


def ahead(n: Any) -> Any:
    return torch.arange(n)[None] - torch.arange(n)[:, None]


#: Ways to hide the future, and what else they hide: of scores [B, H, n, n].
TRIANGLES: dict[str, tuple[Any, bool]] = {
    "tril": (lambda s, n: s.masked_fill(~tril(n), -torch.inf), True),
    "triu": (lambda s, n: s.masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf), True),
    "added": (lambda s, n: s + torch.full((n, n), -torch.inf).triu(diagonal=1), True),
    "float mask": (lambda s, n: s + (1.0 - tril(n).float()) * -1e9, True),
    "equals zero": (lambda s, n: s.masked_fill(torch.ones(n, n).tril()[None, None] == 0, -1e9), True),
    "positions": (lambda s, n: torch.where(ge(n), s, -torch.inf), True),
    "distance": (
        lambda s, n: torch.where(
            (torch.arange(n)[None] - torch.arange(n)[:, None]) <= 0, s, -torch.inf
        ),
        True,
    ),
    "shifted": (lambda s, n: s.masked_fill(~torch.ones(n, n).bool().tril(1), -torch.inf), False),
    "the past": (lambda s, n: s.masked_fill(~torch.ones(n, n).bool().triu(), -torch.inf), False),
    "everything": (lambda s, n: torch.where(torch.arange(n) >= 0, s, -torch.inf), False),
}


@pytest.mark.parametrize("decompose", [False, True])
@pytest.mark.parametrize("name", TRIANGLES)
def test_triangles_of_unknown_size(name: str, decompose: bool) -> None:
    hide, causal = TRIANGLES[name]

    class Hidden(nn.Module):
        def forward(self, q: Any, k: Any, v: Any) -> Any:
            return hide(q @ k.transpose(-2, -1), q.shape[2]).softmax(-1) @ v

    length = Dim("n", min=2, max=64)
    inputs = (rand(2, 3, 7, 8), rand(2, 3, 7, 8), rand(2, 3, 7, 9))
    shapes = ({2: length}, {2: length}, {2: length})
    found = capture(Hidden(), inputs, dynamic_shapes=shapes, decompose=decompose)
    graph, notes = fused(found)
    assert notes == []
    op = attention(graph)
    assert op.arg("is_causal", False) == causal
    assert (op.arg("attn_mask") is None) == (causal or name == "everything")
    longer = (rand(2, 3, 11, 8), rand(2, 3, 11, 8), rand(2, 3, 11, 9))
    expected, actual = outputs(found.graph, found, longer), outputs(graph, found, longer)
    torch.testing.assert_close(actual[0], expected[0])


def test_bert_of_unknown_length_sees_everything() -> None:
    shapes = ({0: Dim("b", min=1, max=8), 1: Dim("n", min=2, max=32)},)
    found = capture(build("bert"), (tokens(),), dynamic_shapes=shapes)
    graph, notes = fused(found)
    assert notes == []
    assert [op.arg("attn_mask") for op in attentions(graph)] == [None, None]


def test_merged_heads_of_unknown_length_keep_an_exact_bound() -> None:
    """Splitting ``batch * heads`` must give the number of heads, not a looser expression."""

    class Merged(nn.Module):
        def forward(self, q: Any, k: Any, v: Any) -> Any:
            weights = torch.softmax(q @ k.transpose(-2, -1), -1)
            return weights @ v

    batch = Dim("b", min=1, max=8)
    inputs = (rand(2, H, 5, 8), rand(2, H, 7, 8), rand(2, H, 7, 9))
    found = capture(Merged(), inputs, dynamic_shapes=({0: batch},) * 3, decompose=True)
    graph, _ = fused(found)
    type_ = attention(graph).result.type.bounded(graph.symbol_table)
    assert type_.shape == (8, H, 5, 9)


def test_one_model_may_have_both_kinds() -> None:
    def two(q: Any, k: Any, v: Any) -> Any:
        first = torch.softmax(q @ k.transpose(-2, -1), -1) @ v
        return torch.softmax(first @ first.transpose(-2, -1), -2) @ first

    found = capture(Model(two), (rand(2, 5, 8), rand(2, 5, 8), rand(2, 5, 8)))
    graph, notes = fused(found)
    assert count(graph) == 1
    assert len(notes) == 1 and "another axis" in notes[0]


def test_weights_that_a_backward_pass_reads_stay() -> None:
    from mplan.capture.training import capture_training

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 24)

        def forward(self, x: Any) -> Any:
            q, k, v = self.project(x).chunk(3, -1)
            return torch.softmax(q @ k.transpose(-2, -1), -1) @ v

    found = capture_training(Block(), (rand(2, 5, 8),), lambda out: out.square().mean())
    graph, notes = fused(found)
    assert graph is found.graph
    assert any("also used by" in note for note in notes)


def test_torch_attention_with_dropout_stays() -> None:
    def dropped(q: Any, k: Any, v: Any) -> Any:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)

    found = capture(Model(dropped), (rand(1, 2, 5, 8), rand(1, 2, 5, 8), rand(1, 2, 5, 8)))
    assert fused(found)[0] is found.graph
