"""What SageMaker tells a training container, as defaults of training.train's flags."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLACES = {
    "SM_CHANNEL_DATA": "data",
    "SM_OUTPUT_DATA_DIR": "output",
    "SM_MODEL_DIR": "model_dir",
    "RUN_ID": "run_id",  # by training.sagemaker.request
}


def sagemaker_defaults(environment: Mapping[str, str]) -> dict[str, Any]:
    """Flags, by name without dashes, that the variables of SageMaker's training toolkit stand for.

    https://github.com/aws/sagemaker-training-toolkit/blob/master/ENVIRONMENT_VARIABLES.md.
    The channels are called `data` and `weights`; SM_HPS holds the hyperparameters as JSON. Empty
    anywhere else. Raises ValueError when SM_HPS is no JSON object.
    """
    if "SM_MODEL_DIR" not in environment:
        return {}
    hyperparameters = json.loads(environment.get("SM_HPS", "{}"))
    if not isinstance(hyperparameters, dict):
        raise ValueError("SM_HPS is not a JSON object")
    defaults: dict[str, Any] = {
        name.replace("-", "_"): value
        for name, value in hyperparameters.items()
        if not name.startswith(("sagemaker_", "_"))  # for the toolkit itself, and the tuner's
    }
    defaults |= {
        flag: environment[variable] for variable, flag in PLACES.items() if variable in environment
    }
    # SageMaker keeps this folder in step with S3. Trials of a tuning job share it: they find the
    # features there, and each its own snapshots, by its settings.
    defaults["checkpoint_dir"] = str(Path(environment["SM_MODEL_DIR"]).with_name("checkpoints"))
    if "SM_CHANNEL_WEIGHTS" in environment:
        arch = defaults.get("arch", "resnet50")
        defaults["weights"] = str(Path(environment["SM_CHANNEL_WEIGHTS"]) / f"{arch}.pth")
    return defaults
