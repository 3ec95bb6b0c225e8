"""Trials as Optuna keeps them, in user attributes that are named as the fields of `Trial`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

from optuna.trial import FrozenTrial, TrialState, create_trial

from ..latency import Latency
from .architecture import Architecture
from .budgets import Budget, costs_of
from .controllers import architecture_of, distributions
from .space import SearchSpace
from .trial import COMPLETE, FAILED, KILLED, RUNNING, STOPPED, Trial

STATES = {
    COMPLETE: TrialState.COMPLETE,
    STOPPED: TrialState.PRUNED,
    FAILED: TrialState.FAIL,
    RUNNING: TrialState.RUNNING,
}
ATTRIBUTES = ("latency", "costs", "machine", "quality", "loss", "tokens", "seconds", "reward", "failure")


def trial_of(trial: FrozenTrial) -> Trial:
    """What Optuna knows of a trial that has its architecture."""
    told = {name: trial.user_attrs[name] for name in ATTRIBUTES if name in trial.user_attrs}
    if trial.state != TrialState.FAIL:
        told.pop("failure", None)  # its worker told a result when it was just taken for dead
    return Trial(
        number=trial.number,
        episode=episode_of(trial),
        architecture=Architecture.from_params(trial.params),
        state=next(name for name, state in STATES.items() if state == trial.state),
        readings=dict(trial.intermediate_values),
        **told | {"latency": Latency(*told["latency"]) if "latency" in told else None},
    )


def attributes_of(trial: Trial) -> dict[str, Any]:
    """The user attributes of a trial, as far as they are known."""
    unknown = Trial(trial.number, trial.episode, trial.architecture)
    known = {name: getattr(trial, name) for name in ATTRIBUTES if getattr(trial, name) != getattr(unknown, name)}
    return known | ({} if trial.latency is None else {"latency": list(astuple(trial.latency))})


def values_of(trial: Trial, objective: str) -> list[Any] | None:
    """What a study of an objective (see `SearchStudy`) optimizes; None unless the trial is complete."""
    if not trial.is_complete:
        return None
    return [trial.reward] if objective == "reward" else [trial.quality, 1.0 / costs_of(trial)["speedup"]]


def template_of(
    trial: Trial, space: SearchSpace, objective: str, budget: Budget, attributes: Mapping[str, Any]
) -> FrozenTrial:
    """A trial of an architecture, with all that is known of it, and with further user attributes."""
    return create_trial(
        state=STATES[trial.state],
        values=values_of(trial, objective),
        params=space.encode(trial.architecture),
        distributions=distributions(space),
        user_attrs={"episode": trial.episode, **attributes_of(trial), **attributes},
        intermediate_values=dict(trial.readings),
        constraints=budget.excess(costs_of(trial)),
    )


def is_killed(trial: FrozenTrial) -> bool:
    """Whether the worker of a trial died, so that it says nothing of its architecture."""
    return trial.state == TrialState.FAIL and trial.user_attrs.get("failure") == KILLED


def episode_of(trial: FrozenTrial) -> int:
    """The episode that a trial was chosen in, counted from 0; less if another search has measured it."""
    return trial.user_attrs["episode"]


def retries_of(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that were killed whose architectures no other trial has."""
    taken = {None, *(architecture_of(trial) for trial in trials if not is_killed(trial))}
    return [trial for trial in trials if is_killed(trial) and architecture_of(trial) not in taken]


def next_episode(trials: Sequence[FrozenTrial], candidates: int) -> int:
    """That of the newest trial until it has all candidates, then the one after it; or an earlier one, to try again."""
    newest = max([0, *map(episode_of, trials)])
    full = sum(episode_of(trial) == newest and not is_killed(trial) for trial in trials)
    return min([newest + (full >= candidates), *map(episode_of, retries_of(trials))])
