"""`SentenceEncoder`: an encoder with its sentence head, from texts to vectors, without sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..utils.encoders import encoder_config, load_encoder
from ..utils.sentence_head import SentenceHead
from ..utils.tokenizers import load_tokenizer


class SentenceEncoder:
    """Makes sentence vectors, the same as `SentenceTransformer` makes of the same files.

    Args:
        model: The encoder.
        tokenizer: Its tokenizer.
        head: What makes a vector of its last states.
        batch_size: Texts in one forward pass.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, head: SentenceHead, batch_size: int = 32
    ) -> None:
        self.model, self.tokenizer, self.head, self.batch_size = model, tokenizer, head, batch_size

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, revision: str | None = None, field: str = "student", batch_size: int = 32
    ) -> SentenceEncoder:
        """Load one from the Hub or a local directory.

        Args:
            name_or_path: Hub id or local directory.
            revision: Branch, tag or commit on the Hub.
            field: What errors call ``name_or_path``: the argument that named it.
            batch_size: Texts in one forward pass.

        Raises:
            ValueError: If it is no encoder, or has no sentence head.
        """
        name = str(name_or_path)
        config = encoder_config(name, revision, field)
        head = SentenceHead.load(name, revision, field)
        if head is None:
            raise ValueError(
                f"{field}={name!r} has no modules.json: how it makes sentence vectors is unknown. Save it with "
                "sentence-transformers; a student has one if it learned from a teacher that has."
            )
        tokenizer = load_tokenizer(name, revision, field, require_fast=False)
        return cls(load_encoder(name, config, revision).eval(), tokenizer, head.eval(), batch_size)

    @property
    def prompts(self) -> dict[str, str]:
        """What stands before a text, by what the text is for."""
        return self.head.prompts

    @property
    def dimension(self) -> int:
        """Size of its vectors."""
        return self.head.dimension(self.model.config.hidden_size)

    @property
    def max_length(self) -> int:
        """Tokens of a text that are read; the rest is cut off."""
        return min(self.head.max_length or self.tokenizer.model_max_length, self.tokenizer.model_max_length)

    @torch.no_grad()
    def encode(self, sentences: Sequence[str], prompt_name: str | None = None) -> np.ndarray:
        """Vectors ``(texts, dimension)`` in float32.

        Args:
            sentences: The texts.
            prompt_name: The name of the prompt that is put before each; by default the default one, if there is one.

        Raises:
            ValueError: If the prompt is unknown.
        """
        prompt, was_training = self.head.prompt(prompt_name), self.model.training
        self.model.eval()
        texts = [prompt + text for text in sentences]
        # texts of similar length side by side, so that little is padded
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            inputs = self.tokenizer(
                [texts[index] for index in chosen],
                padding=True,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            ).to(self.model.device)
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
            vectors[chosen] = self.head(states, mask).float().cpu().numpy()
        self.model.train(was_training)
        return vectors
