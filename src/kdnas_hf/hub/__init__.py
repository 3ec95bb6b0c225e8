"""What a published student carries: its card."""

from .model_card import KDNASModelCardData, write_model_card

__all__ = ["KDNASModelCardData", "write_model_card"]
