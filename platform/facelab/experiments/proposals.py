"""The next point of a search that learns from the trials so far: Optuna's TPE, built anew from the table each time, so
that a sweep which crashed proposes as one that did not."""

import warnings
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from facelab.experiments.space import Choice, Dimension, Point
from facelab.experiments.trials import State, Trial

optuna.logging.set_verbosity(optuna.logging.WARNING)

_STATES = {State.DONE: TrialState.COMPLETE, State.STOPPED: TrialState.PRUNED}
_LOST = (State.DIVERGED, State.REFUSED, State.FAILED)


def propose(space: Sequence[Dimension], seed: int, trials: Sequence[Trial], mode: str) -> Point:
    """A point that promises the most (Bergstra et al. 2011), given what has become of the trials so far: the first ten
    are random.

    Args:
        mode: "min" or "max", of the trials' values.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of the two options
        # Together, as λ and β trade off; and not where trials run whose end is not known yet.
        sampler = optuna.samplers.TPESampler(seed=seed + len(trials), multivariate=True, constant_liar=True)
    study = optuna.create_study(sampler=sampler, direction="minimize" if mode == "min" else "maximize")
    distributions = {each.option: _distribution(each) for each in space}
    study.add_trials([_frozen(trial, space, distributions, mode) for trial in trials])
    asked = study.ask(distributions)
    return {each.option: _value(each, asked.params[each.option]) for each in space}


def _distribution(each: Dimension) -> BaseDistribution:
    if isinstance(each, Choice):
        return CategoricalDistribution(range(len(each.values)))  # by number, as it takes no lists
    if each.whole:
        return IntDistribution(round(each.low), round(each.high), log=each.log)
    return FloatDistribution(each.low, each.high, log=each.log)


def _value(each: Dimension, asked: object) -> object:
    if isinstance(each, Choice):
        return each.values[int(str(asked))]
    return asked if isinstance(asked, int) else float(f"{asked:.6g}")


def _frozen(
    trial: Trial, space: Sequence[Dimension], distributions: dict[str, BaseDistribution], mode: str
) -> FrozenTrial:
    params = {d.option: _number(d, trial.point[d.option]) for d in space}
    state = TrialState.FAIL if trial.state in _LOST else _STATES.get(trial.state, TrialState.RUNNING)
    value = trial.best(mode) if state == TrialState.COMPLETE else None
    told = dict(trial.curve) if state == TrialState.PRUNED else None
    return create_trial(state=state, params=params, distributions=distributions, value=value, intermediate_values=told)


def _number(each: Dimension, value: object) -> object:
    return each.values.index(value) if isinstance(each, Choice) else value
