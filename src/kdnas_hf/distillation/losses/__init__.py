"""What a student learns from its teacher: one file for each loss."""

from .hidden_states import PROJECTIONS, ExplainedVariance, HiddenStateProjections, hidden_state_loss

__all__ = ["PROJECTIONS", "ExplainedVariance", "HiddenStateProjections", "hidden_state_loss"]
