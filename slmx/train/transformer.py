"""The transformer of `slmx train lm`: decoder-only, in one file, and loadable by transformers as Llama or Qwen3.

    token ids (B, T) → embedding → L × [ x + attention(norm(x)); x + mlp(norm(x)) ] → norm → head → loss or logits

Letters in comments: B windows, T tokens a window, H query heads, K key heads, D numbers a head, C = dim, V vocabulary.
Weights are fp32; `compute` is the number type of the products (bf16 where it is faster): each weight is cast where it
is used, so that gradients and the optimizer stay in fp32 without a second copy to keep in step.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slmx.records import Record
from slmx.train.attention import attend
from slmx.train.cross_entropy import Piece, piece_of, summed_loss


class Shape(Record, frozen=True, omit_defaults=False):
    """What a model is: everything that its weights' shapes and its mathematics depend on.

    `hidden` is the width of the MLP: three matrices for swiglu (Shazeer 2020), two for relu2 (So et al. 2021).
    `kv_heads` below `heads` is grouped-query attention (Ainslie et al. 2023); `qk_norm` puts an RMSNorm on each head's
    queries and keys (Henry et al. 2020); `tied`: the head is the embedding.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    context: int
    activation: Literal["swiglu", "relu2"] = "swiglu"
    qk_norm: bool = False
    tied: bool = True
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        """Numbers a head."""
        return self.dim // self.heads


class RMSNorm(nn.Module):
    """x / rms(x) · weight, computed in fp32 (Zhang and Sennrich 2019)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(…, dim) → (…, dim) in the type of `x`."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight).to(x.dtype)


def linear(x: Tensor, *layers: nn.Linear) -> Tensor:
    """x times the weights of some layers side by side, in the type of `x`: one product instead of several."""
    weights = [layer.weight for layer in layers]
    return F.linear(x, (torch.cat(weights) if len(weights) > 1 else weights[0]).to(x.dtype))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of (B, T, heads, D): pairs (i, i + D/2) are turned by position · theta^(-2i/D)."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Causal attention within documents, with grouped heads."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = shape.heads, shape.kv_heads, shape.head_dim
        self.q = nn.Linear(shape.dim, shape.heads * self.size, bias=False)
        self.k = nn.Linear(shape.dim, shape.kv_heads * self.size, bias=False)
        self.v = nn.Linear(shape.dim, shape.kv_heads * self.size, bias=False)
        self.o = nn.Linear(shape.heads * self.size, shape.dim, bias=False)
        self.q_norm = RMSNorm(self.size, shape.norm_eps) if shape.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.size, shape.norm_eps) if shape.qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Any) -> Tensor:
        """(B, T, C) → (B, T, C); `mask` as slmx.train.attention.masks made it."""
        heads = linear(x, self.q, self.k, self.v).view(*x.shape[:2], -1, self.size)  # (B, T, H + 2K, D)
        q, k, v = torch.split(heads, [self.heads, self.kv_heads, self.kv_heads], dim=2)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        return linear(attend(q, k, v, mask).flatten(2), self.o)


class MLP(nn.Module):
    """silu(gate) · up → down, or relu(up)² → down."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.dim, shape.hidden, bias=False) if shape.activation == "swiglu" else None
        self.up = nn.Linear(shape.dim, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        if self.gate is None:
            return linear(F.relu(linear(x, self.up)).square(), self.down)
        gate, up = linear(x, self.gate, self.up).chunk(2, dim=-1)
        return linear(F.silu(gate) * up, self.down)


class Block(nn.Module):
    """One layer. It is compiled by itself: all layers share what was compiled for the first."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.attention = Attention(shape)
        self.mlp_norm = RMSNorm(shape.dim, shape.norm_eps)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Any) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        x = x + self.attention(self.attention_norm(x), cos, sin, mask)
        out: Tensor = x + self.mlp(self.mlp_norm(x))
        return out


class Transformer(nn.Module):
    """The whole model.

    Example:
        >>> model = Transformer(Shape(vocab_size=8192, dim=256, layers=6, heads=4, kv_heads=4, hidden=768, context=512))
        >>> ids = torch.randint(8192, (2, 513))
        >>> loss = model(ids[:, :-1], targets=ids[:, 1:]) / ids[:, 1:].numel()
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape, *, compute: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape, self.compute = shape, compute
        self.piece: Piece = piece_of
        self.embedding = nn.Embedding(shape.vocab_size, shape.dim)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.dim, shape.norm_eps)
        self.head = nn.Linear(shape.dim, shape.vocab_size, bias=False)
        if shape.tied:
            self.head.weight = self.embedding.weight
        cos, sin = _angles(shape)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Random weights of a seed: products keep the scale of their input, and each layer begins as the identity."""
        random = torch.Generator().manual_seed(seed)
        for name, weight in self.named_parameters():
            if weight.ndim < 2:
                weight.fill_(1.0)
            elif name.endswith(("o.weight", "down.weight")):
                weight.zero_()
            else:
                scale = 0.02 if name in ("embedding.weight", "head.weight") else 1 / math.sqrt(weight.shape[1])
                weight.copy_(torch.empty(weight.shape).normal_(0, scale, generator=random))

    def forward(self, tokens: Tensor, *, targets: Tensor | None = None, mask: Any = None) -> Tensor:
        """Logits (B, T, V) of token ids (B, T); with `targets` (B, T; -100 is left out) the summed loss in nats.

        `mask` (slmx.train.attention.masks) keeps documents apart; None: each window is one document.
        """
        length = tokens.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.embedding(tokens).to(self.compute)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        x = self.norm(x)
        if targets is None:
            return linear(x, self.head)
        return summed_loss(x.flatten(0, 1), self.head.weight, targets.flatten(), self.piece)

    def compile_layers(self, wanted: bool = True) -> None:
        """Compile what a training step runs, at its first use; `False` takes that back. See `torch.compile`."""
        for block in self.blocks:
            block._compiled_call_impl = torch.compile(block._call_impl, dynamic=False) if wanted else None
        self.piece = torch.compile(piece_of, dynamic=False) if wanted else piece_of


def _angles(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines (context, 1, D/2) of position · theta^(-2i/D)."""
    powers = torch.arange(0, shape.head_dim, 2).float() / shape.head_dim
    angles = torch.outer(torch.arange(shape.context).float(), shape.rope_theta**-powers)
    return angles.cos()[:, None], angles.sin()[:, None]


def count_parameters(shape: Shape) -> int:
    """How many numbers a model of this shape learns, without making it."""
    norms = 2 * shape.dim + (2 * shape.head_dim if shape.qk_norm else 0)
    embeddings = shape.vocab_size * shape.dim * (1 if shape.tied else 2)
    return embeddings + count_matrices(shape) + shape.layers * norms + shape.dim


def count_matrices(shape: Shape) -> int:
    """How many of them stand in matrices within the layers."""
    attention = shape.dim * 2 * (shape.dim + shape.kv_heads * shape.head_dim)
    mlp = (3 if shape.activation == "swiglu" else 2) * shape.dim * shape.hidden
    return shape.layers * (attention + mlp)


def flops_per_token(shape: Shape, length: int) -> int:
    """Operations of a training step for one token: 6 a weight in a product, and attention's two products.

    A causal query sees half of its window on average: 6 · length · dim a layer (PaLM's appendix B, halved).
    """
    vocabulary = shape.vocab_size * shape.dim
    in_products = count_parameters(shape) - vocabulary * (0 if shape.tied else 1)
    return 6 * in_products + 6 * shape.layers * length * shape.dim
