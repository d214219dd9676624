"""SASRec: self-attention over what a user bought, to recommend the next item (Kang and McAuley, arXiv:1808.09781)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

PADDING = 0
HIDDEN = -1e4  # a score that softmax takes for nothing, and that every float type can hold


class Attention(nn.Module):
    """Multi-head attention of [N, T, C] over itself, without what ``hidden`` [N, 1, T, T] adds to the scores."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels cannot be shared by {heads} heads")
        self.heads = heads
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Softmax(Q K^T / sqrt(channels a head) + hidden) V (equation 2), through the output layer."""
        q, k, v = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + hidden
        mixed = self.dropout(scores.softmax(dim=-1)) @ v
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[N, T, C] -> [N, heads, T, C / heads]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """Attention and a point-wise feed-forward network, each behind a layer norm and beside a shortcut."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = Attention(channels, heads, dropout)
        self.norm2 = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, channels)
        self.relu = nn.ReLU()
        self.linear2 = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """[N, T, C] -> the same."""
        x = x + self.dropout(self.attention(self.norm1(x), hidden))
        return x + self.dropout(self.linear2(self.dropout(self.relu(self.linear1(self.norm2(x))))))


class SASRec(nn.Module):
    """Item ids int64 [N, T], 0 in front where there are fewer, to scores [N, items + 1]: column i is item i.

    A position sees itself and what came before. The scores of the last one are its products with the table of all
    items (equation 6), or, where not ``tied``, with a linear layer's own. Items of ``history`` itself score ``HIDDEN``,
    unless ``repeats`` says that they may be bought again: training cannot learn what is hidden.
    """

    def __init__(
        self,
        items: int,
        length: int = 50,
        channels: int = 64,
        blocks: int = 2,
        heads: int = 1,
        dropout: float = 0.2,
        tied: bool = True,
        repeats: bool = False,
    ) -> None:
        super().__init__()
        self.repeats = repeats
        self.items = nn.Embedding(items + 1, channels, padding_idx=PADDING)
        self.positions = nn.Embedding(length, channels)
        self.norm0 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(channels, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels)
        self.scores = nn.Linear(channels, items + 1, bias=False)
        # A table that scores: products with normalized states begin around 1. Positions must not drown the items.
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=channels**-0.5)
        if tied:
            self.scores.weight = self.items.weight
        else:
            nn.init.normal_(self.scores.weight, std=channels**-0.5)
        causal = torch.full((length, length), HIDDEN).triu(diagonal=1)
        self.register_buffer("causal", causal, persistent=False)
        self.register_buffer("places", torch.arange(length), persistent=False)

    def forward(self, history: Tensor) -> Tensor:
        """Score all items as the next one after ``history`` int64 [N, T]; returns [N, items + 1]."""
        padding = (history == PADDING).to(self.causal.dtype)
        # Finite: the softmax of a padded position, which sees padding alone, is no NaN, and nobody reads that position.
        hidden = self.causal + HIDDEN * padding[:, None, None, :]
        x = self.dropout(self.norm0(self.items(history) + self.positions(self.places)))
        for block in self.blocks:
            x = block(x, hidden)
        scores = self.scores(self.norm(x)[:, -1])
        # The authors rank among what a user does not have, too; tied scores would put the history's last item on top.
        return scores if self.repeats else scores.scatter(1, history, HIDDEN)
