"""The toolkit that starts the trials of a search, as the API of searches has no entry point.

Only the part of sagemaker-training 5.1 that our jobs use
(github.com/aws/sagemaker-training-toolkit).
"""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OWN = (
    "sagemaker_",
    "_tuning_objective_metric",
)  # hyperparameters that the script does not get


def toolkit_variables(
    root: Path, hyperparameters: Mapping[str, str], name: str, names: list[str]
) -> dict[str, str]:
    """The variables SM_… of one host, whose /opt/ml is `root`."""
    data = root / "input/data"
    channels = sorted(folder.name for folder in data.iterdir())
    values = {
        "HOSTS": names,
        "CURRENT_HOST": name,
        "NETWORK_INTERFACE_NAME": "lo",
        "HPS": _users(hyperparameters),
        "USER_ENTRY_POINT": hyperparameters["sagemaker_program"],
        "CHANNELS": channels,
        "INPUT_DIR": str(root / "input"),
        "OUTPUT_DIR": str(root / "output"),
        "OUTPUT_DATA_DIR": str(root / "output/data"),
        "MODEL_DIR": str(root / "model"),
        "NUM_CPUS": os.cpu_count(),
        "NUM_GPUS": 0,
        **{f"CHANNEL_{channel.upper()}": str(data / channel) for channel in channels},
    }
    return {
        f"SM_{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in values.items()
    }


def toolkit_command(
    root: Path, hyperparameters: Mapping[str, str], name: str, names: list[str], port: int
) -> list[str]:
    """The command that installs the code's requirements and runs its script, with torchrun if
    requested."""
    start = ["python"]
    if hyperparameters.get("sagemaker_torch_distributed_enabled") == "true":
        start = [
            *("torchrun", "--nnodes", str(len(names)), "--nproc_per_node", "1"),
            *("--master_addr", "127.0.0.1", "--master_port", str(port)),
            *("--node_rank", str(names.index(name))),
        ]
    words = [*start, hyperparameters["sagemaker_program"]]
    for key, value in _users(hyperparameters).items():
        words += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    install = "if [ -f requirements.txt ]; then python -m pip install -r requirements.txt; fi"
    return ["bash", "-c", f"cd {shlex.quote(str(root))}/code && {install} && {shlex.join(words)}"]


def _users(hyperparameters: Mapping[str, str]) -> dict[str, Any]:
    return {
        key: _decoded(value) for key, value in hyperparameters.items() if not key.startswith(OWN)
    }


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
