"""From text to tokenised datasets, and the embedded sources that the quickstart needs instead of the Hub."""

from .arguments import DataArguments
from .corpus import load_corpus
from .embedded_teacher import EMBEDDED_TEACHER_NAME, embedded_teacher
from .embedded_text import embedded_intents, embedded_sentences
from .splits import CorpusSplits, split_corpus
from .token_counts import count_tokens
from .tokenization import parse_prompts, tokenize_corpus

__all__ = [
    "EMBEDDED_TEACHER_NAME",
    "CorpusSplits",
    "DataArguments",
    "count_tokens",
    "embedded_intents",
    "embedded_sentences",
    "embedded_teacher",
    "load_corpus",
    "parse_prompts",
    "split_corpus",
    "tokenize_corpus",
]
