"""Transformers, mixers and recurrences."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EncoderLayer(nn.Module):
    """Pre-norm attention and MLP; ``fused`` uses torch's own attention operator."""

    def __init__(self, width: int, heads: int, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def attention(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, c))


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 32, depth: int = 3, heads: int = 4, fused: bool = False) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, fused) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


class Mixer(nn.Module):
    """MLPs over tokens and channels in turn (Tolstikhin et al. 2021)."""

    def __init__(self, width: int = 16, tokens: int = 16, depth: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.tokens = nn.ModuleList(self._mlp(tokens) for _ in range(depth))
        self.channels = nn.ModuleList(self._mlp(width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def _mlp(self, width: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for i, (tokens, channels) in enumerate(zip(self.tokens, self.channels, strict=True)):
            x = x + tokens(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(self.norms[2 * i + 1](x))
        return self.head(x.mean(1))


class GatedRnn(nn.Module):
    """A gated recurrent unit written out over the steps of its input."""

    def __init__(self, inputs: int = 8, hidden: int = 16) -> None:
        super().__init__()
        self.hidden = hidden
        self.wx = nn.Linear(inputs, 3 * hidden)
        self.wh = nn.Linear(hidden, 3 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.hidden)
        states = []
        for step in x.unbind(1):
            xr, xz, xn = self.wx(step).chunk(3, -1)
            hr, hz, hn = self.wh(h).chunk(3, -1)
            z = torch.sigmoid(xz + hz)
            n = torch.tanh(xn + torch.sigmoid(xr + hr) * hn)
            h = (1 - z) * n + z * h
            states.append(h)
        return torch.stack(states, 1)


class WaveNet(nn.Module):
    """Dilated causal convolutions with gates and skip sums (van den Oord et al. 2016)."""

    def __init__(self, width: int = 8, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 1)
        self.gates = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 2, dilation=1 << i) for i in range(depth)
        )
        self.outs = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(depth))
        self.head = nn.Conv1d(width, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = torch.zeros_like(x)
        for i, (gate, out) in enumerate(zip(self.gates, self.outs, strict=True)):
            a, b = gate(F.pad(x, (1 << i, 0))).chunk(2, 1)
            y = out(torch.tanh(a) * torch.sigmoid(b))
            skips = skips + y
            x = x + y
        return self.head(F.relu(skips))


class TriangleMultiplication(nn.Module):
    """Update of edges by the two other edges of each triangle (Jumper et al. 2021, algorithm 11)."""

    def __init__(self, width: int, hidden: int, outgoing: bool) -> None:
        super().__init__()
        self.outgoing = outgoing
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(hidden)
        self.parts = nn.ModuleList(nn.Linear(width, hidden) for _ in range(4))
        self.gate, self.out = nn.Linear(width, width), nn.Linear(hidden, width)

    def forward(self, z: Tensor) -> Tensor:
        z = self.norm_in(z)
        gate_a, a, gate_b, b = (part(z) for part in self.parts)
        a, b = torch.sigmoid(gate_a) * a, torch.sigmoid(gate_b) * b
        form = "bikc,bjkc->bijc" if self.outgoing else "bkic,bkjc->bijc"
        return torch.sigmoid(self.gate(z)) * self.out(self.norm_out(torch.einsum(form, a, b)))


class TriangleAttention(nn.Module):
    """Gated attention along rows with a bias per edge of the pairs (algorithms 7 and 13)."""

    def __init__(self, width: int, pairs: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.hidden = heads, hidden
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * hidden, bias=False)
        self.bias = nn.Linear(pairs, heads, bias=False)
        self.gate, self.out = nn.Linear(width, heads * hidden), nn.Linear(heads * hidden, width)

    def forward(self, z: Tensor, pairs: Tensor) -> Tensor:
        b, n, m, _ = z.shape
        z = self.norm(z)
        q, k, v = self.qkv(z).reshape(b, n, m, 3, self.heads, self.hidden).permute(3, 0, 1, 4, 2, 5)
        bias = self.bias(pairs).permute(0, 3, 1, 2).unsqueeze(1)
        scores = q @ k.transpose(-1, -2) * self.hidden**-0.5 + bias
        y = torch.softmax(scores, -1) @ v
        y = y.transpose(2, 3).reshape(b, n, m, self.heads * self.hidden)
        return self.out(torch.sigmoid(self.gate(z)) * y)


class OuterProductMean(nn.Module):
    """From the alignment to the pairs (algorithm 10): the largest intermediate of the block."""

    def __init__(self, msa: int, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(msa)
        self.a, self.b = nn.Linear(msa, hidden), nn.Linear(msa, hidden)
        self.out = nn.Linear(hidden * hidden, width)

    def forward(self, m: Tensor) -> Tensor:
        m = self.norm(m)
        outer = torch.einsum("bsic,bsjd->bijcd", self.a(m), self.b(m)) / m.shape[1]
        return self.out(outer.flatten(-2))


class Evoformer(nn.Module):
    """One block over an alignment ``[B, S, N, Cm]`` and pairs ``[B, N, N, Cz]``."""

    def __init__(self, msa: int = 16, width: int = 16, heads: int = 2, hidden: int = 8) -> None:
        super().__init__()
        self.row = TriangleAttention(msa, width, heads, hidden)
        self.outer = OuterProductMean(msa, width, hidden)
        self.outgoing = TriangleMultiplication(width, hidden, outgoing=True)
        self.incoming = TriangleMultiplication(width, hidden, outgoing=False)
        self.start = TriangleAttention(width, width, heads, hidden)
        self.end = TriangleAttention(width, width, heads, hidden)
        self.msa_mlp = self._transition(msa)
        self.pair_mlp = self._transition(width)

    def _transition(self, width: int) -> nn.Sequential:
        first, second = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        return nn.Sequential(nn.LayerNorm(width), first, nn.ReLU(), second)

    def forward(self, m: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        m = m + self.row(m, z)
        m = m + self.msa_mlp(m)
        z = z + self.outer(m)
        z = z + self.outgoing(z)
        z = z + self.incoming(z)
        z = z + self.start(z, z)
        turned = z.transpose(1, 2)
        z = z + self.end(turned, turned).transpose(1, 2)
        return m, z + self.pair_mlp(z)


class Gpt(nn.Module):
    """A decoder with explicit causal attention and weights tied between embedding and head."""

    def __init__(self, vocabulary: int = 64, width: int = 32, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(CausalLayer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class CausalLayer(EncoderLayer):
    def attention(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = (t.reshape(b, n, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        hidden = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        y = torch.softmax(scores.masked_fill(hidden, float("-inf")), -1) @ v
        return self.out(y.transpose(1, 2).reshape(b, n, c))


class MixtureOfExperts(nn.Module):
    """Dense mixture: every expert runs, a gate weighs them; many branches of equal shape."""

    def __init__(self, width: int = 16, experts: int = 6) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.gate(x), -1)
        results = torch.stack([expert(x) for expert in self.experts], -1)
        return x + (results * weights.unsqueeze(-2)).sum(-1)


class Autoencoder(nn.Module):
    """Wide, narrow, wide: the anomaly-detection model of MLPerf Tiny."""

    def __init__(self, inputs: int = 64, width: int = 32, narrow: int = 4) -> None:
        super().__init__()
        sizes = [inputs, width, width, narrow, width, width]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU())
                for a, b in itertools.pairwise(sizes)
            )
        )
        self.out = nn.Linear(width, inputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x))
