"""The confirmation: the best of a search once more, beside rules of thumb and random shapes of the same latency.

The best of many noisy measurements is mostly a lucky one. So the few that the controller's model believes in are timed
with more calls and distilled with further seeds, and the student is chosen by that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from transformers.utils import logging

from ..distillation import teacher_shape
from ..export.budgets import Budget
from ..students import Architecture
from .controllers.bayesian import posterior
from .mini_kd import MiniKD
from .result import RANDOM, SEARCH, Confirmation, MeasuredShape
from .rules import Predict, random_architectures, rules_of_thumb
from .setting import SearchSetting
from .trial import Trial

logger = logging.get_logger(__name__)

FOLDER = "confirmation"
TIMED_FOR_EACH = 2  # finalists that are timed for each that is distilled: some miss the budget when timed closely

Time = Callable[[Sequence[Architecture]], list[MeasuredShape]]


def finalists(setting: SearchSetting, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that are worth a confirmation, for each budget the best by the model of all trials first."""
    # what is chosen by: of several budgets each gets the highest quality
    measured = [replace(one, reward=one.quality) for one in trials] if setting.args.budgets else list(trials)
    believed = posterior(setting.space, measured, setting.training_args.seed)
    count = TIMED_FOR_EACH * setting.args.confirm if setting.args.confirm else setting.args.top_k
    found: dict[int, Trial] = {}
    for budget in setting.args.budgets or [setting.budget]:
        able = [one for one in trials if one.is_complete and one.architecture in setting.space and budget.met_by(one)]
        for one in sorted(able, key=lambda one: believed[one.number][0], reverse=True)[:count]:
            found[one.number] = one
    return list(found.values())


def confirm(
    setting: SearchSetting, study: Any, mini_kd: MiniKD, best: Sequence[Trial], time: Time, predict: Predict | None
) -> list[Confirmation]:
    """Time and distill the finalists again, beside what they are compared with; what was done before is not repeated.

    ``time`` and ``predict`` are called in the main process. ``predict`` is None where nothing was timed, and then there
    are no rules of thumb. Where no confirmation is asked for, the finalists are as the search measured them.
    """
    args = setting.args
    if not args.confirm or not args.confirm_seeds:
        return [Confirmation.of(trial) for trial in best]
    key = _key([trial.number for trial in best], args.confirm, args.compare, args.latency_repeats, setting.budget)
    contestants = study.remembered(key)
    if contestants is None:
        chosen = setting.from_main(lambda: _contestants(setting, mini_kd, best, time, predict))
        study.remember(key, [one.to_dict() for one in chosen])
    else:
        chosen = [Confirmation.from_dict(one) for one in contestants]
    names = {f"contestant_{i}": one for i, one in enumerate(dict.fromkeys(one.architecture for one in chosen))}
    qualities: dict[Architecture, list[float]] = {one: [] for one in names.values()}
    for seed in range(setting.training_args.seed + 1, setting.training_args.seed + 1 + args.confirm_seeds):
        known = study.remembered(f"{key} {seed}")
        if known is None:
            folder = setting.folder / FOLDER / f"seed_{seed}"
            with setting.cost.clock("confirmation"):
                readings = mini_kd.measure(names, folder, seed)
            known = {name: reading.quality for name, reading in readings.items()}
            study.remember(f"{key} {seed}", known)
            mini_kd.clean_up(folder)
        for name, quality in known.items():
            qualities[names[name]].append(quality)
    return [
        replace(one, qualities=tuple(qualities[one.architecture]))
        for one in chosen
        if len(qualities[one.architecture]) == args.confirm_seeds  # it did not diverge
    ]


def choose(setting: SearchSetting, confirmed: Sequence[Confirmation], trials: Sequence[Trial]) -> list[Confirmation]:
    """The students to distill on the full corpus: the best by reward, or the best by quality within each budget.

    A rule of thumb or a random shape that turns out best is taken as well. Where nothing meets a budget that is timed
    closely, what met it in the search counts.
    """

    def able(budget: Budget) -> list[Confirmation]:
        met = {trial.number for trial in trials if budget.met_by(trial)}
        return [one for one in confirmed if budget.met_by(one)] or [one for one in confirmed if one.trial in met]

    if setting.args.budgets is None:
        by_reward = sorted(able(setting.budget), key=lambda one: -setting.reward(one.quality, one.latency))
        return by_reward[: setting.args.top_k]
    best = [max(able(budget), key=lambda one: one.quality, default=None) for budget in setting.args.budgets]
    return list({one.architecture: one for one in best if one is not None}.values())


def _contestants(
    setting: SearchSetting, mini_kd: MiniKD, best: Sequence[Trial], time: Time, predict: Predict | None
) -> list[Confirmation]:
    """The finalists that meet the budget when timed closely, rules of thumb and random shapes, with latencies."""
    args = setting.args
    shapes: list[tuple[str, Architecture, int | None]] = [(SEARCH, trial.architecture, trial.number) for trial in best]
    if predict is not None and args.compare:
        level = float(predict([best[0].architecture])[0])
        rules = rules_of_thumb(setting.space, teacher_shape(setting.teacher), predict, level).items()
        # a rule that the search found by itself is there a second time: whoever wins, it was a rule
        shapes += [(name, one, None) for name, one in rules if mini_kd.has_targets_for(one)][: args.compare]
        without = [architecture for _, architecture, _ in shapes]
        drawn = random_architectures(setting.space, predict, level, args.compare, setting.training_args.seed, without)
        shapes += [(RANDOM, one, None) for one in drawn]
    distinct = list(dict.fromkeys(architecture for _, architecture, _ in shapes))
    timed = {one.architecture: one for one in time(distinct)}
    all_of_them = [
        Confirmation(**vars(timed[one]), origin=origin, qualities=(), trial=number) for origin, one, number in shapes
    ]
    kept: list[Confirmation] = []
    for budget in args.budgets or [setting.budget]:
        met = {trial.number for trial in best if budget.met_by(trial)}
        own = [one for one in all_of_them if one.trial in met]
        able = [one for one in own if budget.met_by(one)]
        if own and not able:
            logger.warning(f"timed closely, none of the best is {budget}; so what met it in the search counts.")
        kept += [one for one in (able or own)[: args.confirm] if one not in kept]
    return kept + [one for one in all_of_them if one.trial is None]


def _key(*what: Any) -> str:
    return "confirmation " + hashlib.sha256(json.dumps(what, default=str).encode()).hexdigest()[:12]
