"""The results of a search: a table of its trials, best.json, and plots."""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from common.files import write_atomic
from common.table import decimal, table
from training.search.space import SPACES, TENTHS
from training.settings import Settings

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "waiting",
}
MIN_FOR_IMPORTANCE = 4  # complete trials


def trial_table(study: optuna.Study, objective: str, mode: str) -> str:
    """Format one line per trial, the best trial first and those without a result last."""

    def sort_key(trial: FrozenTrial) -> tuple[bool, float]:
        complete = trial.state is TrialState.COMPLETE
        return not complete, (trial.value or 0.0) if complete else trial.number

    def cells(trial: FrozenTrial) -> list[str]:
        result = ["", ""]
        if trial.state is TrialState.COMPLETE:
            accuracy = trial.user_attrs["validation_accuracy"]
            shown = "" if math.isnan(accuracy) else f"{100 * accuracy:.1f} %"
            result = [f"{trial.value:.4f}", shown]
        values = [_rounded(trial.params[name]) if name in trial.params else "" for name in names]
        return [str(trial.number), *result, *values, _state(trial)]

    names = list(SPACES[mode])
    return table(
        ["trial", objective, "accuracy", *names, "state"],
        [cells(trial) for trial in sorted(study.trials, key=sort_key)],
    )


def _state(trial: FrozenTrial) -> str:
    if trial.state is TrialState.PRUNED:
        return f"pruned at {100 * (trial.last_step or 0) // TENTHS} %"
    return STATES[trial.state]


def _rounded(value: float) -> str:
    """Format a value with three significant digits."""
    return decimal(float(f"{value:.3g}"), 6) if isinstance(value, float) else str(value)


def _complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def write_best(study: optuna.Study, start: Settings, file: Path) -> bool:
    """Write the settings of the best trial to `file`, for --settings; returns whether there is one.

    Settings that are not searched come from `start`.
    """
    if not _complete_trials(study):
        return False
    settings = asdict(replace(start, **study.best_params))
    write_atomic(file, (json.dumps(settings, indent=1) + "\n").encode())
    return True


def plot_trials(study: optuna.Study, objective: str, folder: Path) -> list[Path]:
    """Plot the complete trials to PNG files in `folder`; returns the files.

    Plots the history, the objective over each setting and, given enough trials, the importance of
    each setting (PED-ANOVA, Watanabe et al. 2023).
    """
    # These take two seconds to import, which commands that do not plot need not wait for.
    import matplotlib
    from matplotlib import pyplot
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as plots

    number = len(_complete_trials(study))
    drawn: dict[str, Callable[[], object]] = {}
    if number:
        drawn["history"] = lambda: plots.plot_optimization_history(study, target_name=objective)
        drawn["settings"] = lambda: plots.plot_slice(study, target_name=objective)
    if number >= MIN_FOR_IMPORTANCE:
        drawn["importances"] = lambda: plots.plot_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator()
        )
    folder.mkdir(exist_ok=True)
    files = []
    # Optuna changes matplotlib's style globally, and warns that its plots are experimental.
    with matplotlib.rc_context({"backend": "Agg"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, draw in drawn.items():
            draw()
            file = folder / f"{name}.png"
            pyplot.gcf().savefig(file, dpi=100, bbox_inches="tight")
            pyplot.close()
            files.append(file)
    return files
