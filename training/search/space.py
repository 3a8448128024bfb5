"""The search spaces: a range for each setting, by mode."""

from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from training.settings import Settings

Range = FloatDistribution | IntDistribution | CategoricalDistribution

TENTHS = 10  # trials are compared at tenths of their epochs

# Ranges around the recipes in training.settings, with which the first trial starts.
SPACES: dict[str, dict[str, Range]] = {
    "head": {
        "learning_rate": FloatDistribution(5e-5, 5e-3, log=True),
        "batch_size": CategoricalDistribution([64, 128, 256, 512]),
        "epochs": IntDistribution(5, 40),
        "weight_decay": FloatDistribution(1e-3, 1.0, log=True),
        "hidden": CategoricalDistribution([0, 128, 256, 512, 1024]),
        "dropout": FloatDistribution(0.0, 0.8),
        "label_sigma": FloatDistribution(0.0, 1.0),
    },
    "finetune": {
        "learning_rate": FloatDistribution(1e-4, 2e-3, log=True),
        "batch_size": CategoricalDistribution([16, 32, 64]),
        "epochs": IntDistribution(4, 16),
        "weight_decay": FloatDistribution(1e-3, 0.3, log=True),
        "dropout": FloatDistribution(0.0, 0.6),
        "label_sigma": FloatDistribution(0.0, 1.0),
    },
}


def suggest(trial: Trial, mode: str) -> dict[str, Any]:
    """Suggest a value for each setting; an interrupted trial keeps its values."""
    suggested: dict[str, Any] = {}
    for name, values in SPACES[mode].items():
        match values:
            case FloatDistribution():
                suggested[name] = trial.suggest_float(name, values.low, values.high, log=values.log)
            case IntDistribution():
                suggested[name] = trial.suggest_int(name, values.low, values.high)
            case CategoricalDistribution():
                suggested[name] = trial.suggest_categorical(name, values.choices)
    return suggested


def outside_space(settings: Settings) -> list[str]:
    """Return an error line for each setting that lies outside its range."""
    return [
        f"--{name.replace('_', '-')} {getattr(settings, name)} is outside the search space: "
        f"{_describe(values)}"
        for name, values in SPACES[settings.mode].items()
        if not contains(values, getattr(settings, name))
    ]


def contains(values: Range, value: float) -> bool:
    if isinstance(values, CategoricalDistribution):
        return value in values.choices
    return values.low <= value <= values.high


def _describe(values: Range) -> str:
    if isinstance(values, CategoricalDistribution):
        return "one of " + ", ".join(f"{choice}" for choice in values.choices)
    return f"{values.low:g} to {values.high:g}" + (", logarithmic" if values.log else "")


def describe_spaces() -> str:
    """Describe all ranges in Markdown."""
    lines = []
    for mode, space in SPACES.items():
        lines.append(f"\nSearch space of `--mode {mode}`:\n")
        lines += [f"- `{name}`: {_describe(values)}" for name, values in space.items()]
    return "\n".join(lines)
