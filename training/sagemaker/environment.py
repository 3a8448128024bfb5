"""Converts the environment of SageMaker's training container to flags of training.train."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PLACES = {
    "SM_CHANNEL_DATA": "data",
    "SM_OUTPUT_DATA_DIR": "output",
    "SM_MODEL_DIR": "model_dir",
    "RUN_ID": "run_id",  # set by training.sagemaker.request
}


def sagemaker_defaults(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return flags by name, without dashes, from the variables of SageMaker's training toolkit.

    https://github.com/aws/sagemaker-training-toolkit/blob/master/ENVIRONMENT_VARIABLES.md

    The input channels are `data` and `weights`; SM_HPS has the hyperparameters as JSON. Outside
    SageMaker, the result is empty. Raises ValueError if SM_HPS is not a JSON object.
    """
    if "SM_MODEL_DIR" not in environment:
        return {}
    hyperparameters = json.loads(environment.get("SM_HPS", "{}"))
    if not isinstance(hyperparameters, dict):
        raise ValueError("SM_HPS is not a JSON object")
    defaults: dict[str, Any] = {
        name.replace("-", "_"): value
        for name, value in hyperparameters.items()
        if not name.startswith(("sagemaker_", "_"))  # for the toolkit and the tuner
    }
    defaults |= {
        flag: environment[variable] for variable, flag in PLACES.items() if variable in environment
    }
    # SageMaker synchronizes this folder with S3. The trials of a tuning job share it: they reuse
    # its features, and each finds its own checkpoints by its settings.
    defaults["checkpoint_dir"] = str(Path(environment["SM_MODEL_DIR"]).with_name("checkpoints"))
    if "SM_CHANNEL_WEIGHTS" in environment:
        arch = defaults.get("arch", "resnet50")
        defaults["weights"] = str(Path(environment["SM_CHANNEL_WEIGHTS"]) / f"{arch}.pth")
    return defaults
