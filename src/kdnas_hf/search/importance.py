"""Which choices of the space matter."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import create_trial

from .controllers import distributions
from .ledger import ArchitectureRecord
from .space import SearchSpace

FEWEST = 8  # measured architectures below which nothing is said


def importances(
    space: SearchSpace, records: Sequence[ArchitectureRecord], target: str, seed: int = 0
) -> dict[str, float]:
    """The share of a figure's variance that each choice explains, the greatest first (fANOVA, Hutter et al. 2014).

    Args:
        space: The search space.
        records: What was measured.
        target: The figure, an attribute of `ArchitectureRecord`.
        seed: Of the forest.

    Returns:
        Shares that add up to 1; empty where too little was measured, or where all have the same figure.
    """
    known = {
        record.number: float(value)
        for record in records
        if record.state == "complete" and record.architecture in space
        if (value := getattr(record, target)) is not None
    }
    if len(known) < FEWEST or len(set(known.values())) == 1:
        return {}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=seed))
    for record in records:
        if record.number in known:
            study.add_trial(
                create_trial(
                    params=space.encode(record.architecture),
                    distributions=distributions(space),
                    value=known[record.number],
                )
            )
    found = optuna.importance.get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
    return dict(sorted(found.items(), key=lambda item: -item[1]))
