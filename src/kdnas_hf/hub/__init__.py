"""What a published student carries: its card."""

from .model_card import KDNASModelCardData, write_model_card
from .scores_section import write_scores_into_card

__all__ = ["KDNASModelCardData", "write_model_card", "write_scores_into_card"]
