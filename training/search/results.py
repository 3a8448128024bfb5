"""What a search has found: a table, best.json, and plots of its trials."""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import matplotlib
import optuna
from matplotlib import pyplot
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots

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
FEWEST = 4  # complete trials, to say which settings matter


def trial_table(study: optuna.Study, objective: str, mode: str) -> str:
    """A line for each trial, the best first, those without a result last."""

    def place(trial: FrozenTrial) -> tuple[bool, float]:
        complete = trial.state is TrialState.COMPLETE
        return not complete, (trial.value or 0.0) if complete else trial.number

    def cells(trial: FrozenTrial) -> list[str]:
        found = ["", ""]
        if trial.state is TrialState.COMPLETE:
            right = trial.user_attrs["validation_accuracy"]
            found = [f"{trial.value:.4f}", "" if math.isnan(right) else f"{100 * right:.1f} %"]
        values = [rounded(trial.params[name]) if name in trial.params else "" for name in names]
        return [str(trial.number), *found, *values, state(trial)]

    names = list(SPACES[mode])
    return table(
        ["trial", objective, "accuracy", *names, "state"],
        [cells(trial) for trial in sorted(study.trials, key=place)],
    )


def state(trial: FrozenTrial) -> str:
    """How a trial ended, in words."""
    if trial.state is TrialState.PRUNED:
        return f"pruned at {100 * (trial.last_step or 0) // TENTHS} %"
    return STATES[trial.state]


def rounded(value: float) -> str:
    """Three digits that count."""
    return decimal(float(f"{value:.3g}"), 6) if isinstance(value, float) else str(value)


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def write_best(study: optuna.Study, start: Settings, file: Path) -> bool:
    """Write the settings of the best trial to `file`, for training.train; whether there is one."""
    if not complete_trials(study):
        return False
    settings = asdict(replace(start, **study.best_params))
    given = {name: value for name, value in settings.items() if value is not None}
    write_atomic(file, (json.dumps(given, indent=1) + "\n").encode())
    return True


def plot_trials(study: optuna.Study, objective: str, folder: Path) -> list[Path]:
    """Draw the complete trials into PNG files in `folder`: the history, each setting against the
    objective and, of enough trials, how much each setting matters (PED-ANOVA, Watanabe et al.
    2023). Returns the files."""
    number = len(complete_trials(study))
    drawn: dict[str, Callable[[], object]] = {}
    if number:
        drawn["history"] = lambda: plots.plot_optimization_history(study, target_name=objective)
        drawn["settings"] = lambda: plots.plot_slice(study, target_name=objective)
    if number >= FEWEST:
        drawn["importances"] = lambda: plots.plot_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator()
        )
    folder.mkdir(exist_ok=True)
    files = []
    # Optuna sets a style for good, and warns of its own plots.
    with matplotlib.rc_context({"backend": "Agg"}), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, draw in drawn.items():
            draw()
            file = folder / f"{name}.png"
            pyplot.gcf().savefig(file, dpi=100, bbox_inches="tight")
            pyplot.close()
            files.append(file)
    return files
