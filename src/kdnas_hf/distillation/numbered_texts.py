"""Texts that carry their number, by which what was computed of them in advance is found again."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

TEXT_NUMBER = "text_number"


class NumberedTexts(Dataset):
    """The texts of a data set with their numbers.

    Args:
        dataset: Any sized indexable of rows with ``input_ids``.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input_ids": self.dataset[index]["input_ids"], TEXT_NUMBER: index}
