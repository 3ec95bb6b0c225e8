"""Searches without training, for the tests of controllers."""

import optuna
from optuna.trial import TrialState

from kdnas_hf.search.controllers.base import EPISODE, FAILURE, architecture_of, distributions


def choose(study, episode):
    """A running trial of an episode that has its architecture."""
    trial = study.ask()
    trial.set_user_attr(EPISODE, episode)
    for name, distribution in distributions(study.sampler.space).items():
        trial.suggest_categorical(name, distribution.choices)
    return trial


def play(sampler, trials, tell, study=None, directions=("maximize",)):
    """Ask and tell in episodes: an episode's results are told after all of its candidates are chosen.

    ``tell`` makes of an architecture its values, or the name of its failure.
    """
    study = study or optuna.create_study(sampler=sampler, directions=directions)
    study.sampler = sampler
    while (count := len(study.get_trials(deepcopy=False))) < trials:
        asked = []
        for number in range(count, count + sampler.candidates_per_episode):
            if sampler.available(study, number):
                asked.append(choose(study, count // sampler.candidates_per_episode))
        if not asked:
            break
        for trial in asked:
            said = tell(chosen(study)[trial.number])
            if isinstance(said, str):
                trial.set_user_attr(FAILURE, said)
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, said)
    return study


def chosen(study):
    return [architecture_of(trial) for trial in study.get_trials(deepcopy=False)]
