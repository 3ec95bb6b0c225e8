"""Kinds of embedding tasks: one file for each, found by the name that it is registered under."""

from .base import KINDS, PASSAGE, QUERY, Kind, Rows, register_kind
from .bitext import Bitext
from .clustering import Clustering
from .retrieval import Retrieval
from .similarity import Similarity

__all__ = [
    "KINDS",
    "PASSAGE",
    "QUERY",
    "Bitext",
    "Clustering",
    "Kind",
    "Retrieval",
    "Rows",
    "Similarity",
    "register_kind",
]
