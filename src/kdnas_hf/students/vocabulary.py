"""Train only the word embeddings that occur in the text: the others would keep their initial values anyway."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .modeling_kdnas import KDNASModel


class OccurringWordEmbeddings(nn.Module):
    """A word embedding table of which only some rows train.

    In place of an `nn.Embedding`, and in a state dict it is one: its only entry is `weight`, the whole table. A row
    that does not occur has a gradient of zero, which Adam without weight decay answers with no step: what is learnt is
    the same, but gradients and optimizer state have the size of the rows that occur.

    Args:
        table: `(num_embeddings, embedding_dim)`, the initial values.
        occurring: `(rows,)`, the tokens that occur.
        padding_idx: The padding token, whose row never trains.
    """

    def __init__(self, table: torch.Tensor, occurring: torch.Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        padding = [] if padding_idx is None else [padding_idx]  # in batches, if not in texts
        tokens = torch.cat([occurring.to(table.device), torch.tensor(padding, device=table.device).long()]).unique()
        self.rows = nn.Parameter(table.detach()[tokens].clone())
        self.table = nn.Parameter(table.detach(), requires_grad=False)
        self.padding_idx = padding_idx
        place = torch.full((len(table),), -1, dtype=torch.long, device=table.device)
        place[tokens] = torch.arange(len(tokens), device=table.device)
        self.register_buffer("tokens", tokens, persistent=False)
        self.register_buffer("place", place, persistent=False)
        self._padding_row = None if padding_idx is None else int(place[padding_idx])

    @property
    def num_embeddings(self) -> int:
        """Number of tokens."""
        return self.table.shape[0]

    @property
    def embedding_dim(self) -> int:
        """Size of an embedding."""
        return self.table.shape[1]

    @property
    def weight(self) -> torch.Tensor:
        """The whole table `(num_embeddings, embedding_dim)`, made anew at each access."""
        return self.table.index_copy(0, self.get_buffer("tokens"), self.rows.to(self.table.dtype))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embed `(batch, sequence)` to `(batch, sequence, embedding_dim)`.

        Raises:
            IndexError: In training, on the CPU, if a token does not occur in the text that was announced.
        """
        place = self.get_buffer("place")[input_ids]
        if self.training:
            return nn.functional.embedding(place, self.rows, self._padding_row)
        embedded = nn.functional.embedding(place.clamp_min(0), self.rows)
        return torch.where((place >= 0)[..., None], embedded, nn.functional.embedding(input_ids, self.table))

    @torch.no_grad()
    def fold(self) -> nn.Embedding:
        """The same embeddings as an `nn.Embedding` that trains as a whole."""
        return nn.Embedding.from_pretrained(self.weight, freeze=False, padding_idx=self.padding_idx)

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, occurring={len(self.rows)}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        weight = self.weight
        destination[prefix + "weight"] = weight if keep_vars else weight.detach()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(
            f"cannot load a state dict into {prefix.rstrip('.') or 'word embeddings'} of which only some rows train; "
            "call fold_embeddings(student) first, or load the checkpoint with from_pretrained."
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> OccurringWordEmbeddings:
        copied = OccurringWordEmbeddings(self.table.clone(), self.get_buffer("tokens"), self.padding_idx)
        copied.rows = copy.deepcopy(self.rows, memo)
        copied.train(self.training)
        memo[id(self)] = copied
        return copied


def train_only(student: KDNASModel, occurring: torch.Tensor) -> bool:
    """Train only the word embeddings of some tokens, in place.

    Exact for optimizers that leave a row alone whose gradient is always zero, as Adam without weight decay does.

    Args:
        student: An encoder whose embeddings are an ordinary table; nothing happens to any other.
        occurring: `(tokens,)`, every token that it will be trained on.

    Returns:
        Whether its embeddings were replaced.
    """
    embeddings = student.get_input_embeddings()
    if isinstance(embeddings, OccurringWordEmbeddings):  # of an earlier text
        embeddings = embeddings.fold()
    if not isinstance(embeddings, nn.Embedding) or not embeddings.weight.requires_grad:
        return False
    replaced = OccurringWordEmbeddings(embeddings.weight, occurring, embeddings.padding_idx)
    student.set_input_embeddings(replaced.train(embeddings.training))
    return True


__all__ = ["OccurringWordEmbeddings", "train_only"]
