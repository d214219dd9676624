"""An LSTM over token ids for texts (Hochreiter and Schmidhuber 1997), classified by its mean over the words."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PADDING = 0


class LSTMText(nn.Module):
    """Embedding, LSTM, mean of its states over the tokens, linear. int64 [N, T], 0 is padding -> logits [N, classes].

    ``pool`` "last" takes the state behind the last token instead, which is why padding stands in front; of a
    ``bidirectional`` one that is the last state of each direction. ``dropout`` is behind the embedding, between the
    layers and before the classifier.
    """

    def __init__(
        self,
        vocabulary: int = 20_000,
        embedding: int = 64,
        hidden: int = 64,
        layers: int = 1,
        bidirectional: bool = True,
        pool: str = "mean",
        dropout: float = 0.3,
        classes: int = 2,
    ) -> None:
        super().__init__()
        if pool not in ("mean", "last"):
            raise ValueError(f"pool is {pool!r}, not mean or last")
        self.pool = pool
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=PADDING)
        self.lstm = nn.LSTM(
            embedding, hidden, num_layers=layers, batch_first=True, bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,
        )  # fmt: skip
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden * (2 if bidirectional else 1), classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify texts, token ids [N, T] padded in front with 0; returns logits [N, classes]."""
        states, (last, _) = self.lstm(self.dropout(self.embedding(tokens)))
        if self.pool == "mean":
            real = (tokens != PADDING).to(states.dtype).unsqueeze(-1)
            summary = (states * real).sum(dim=1) / real.sum(dim=1).clamp(min=1.0)
        elif self.lstm.bidirectional:
            summary = torch.cat([last[-2], last[-1]], dim=1)
        else:
            summary = last[-1]
        return self.classifier(self.dropout(summary))
