"""The report of a search: what it found, whether it was worth it, and what it cost."""

from .comparison import Comparison, compare
from .report import BUDGETS, PLOT_FILE, comparison_table, recommend, write_report

__all__ = ["BUDGETS", "PLOT_FILE", "Comparison", "compare", "comparison_table", "recommend", "write_report"]
