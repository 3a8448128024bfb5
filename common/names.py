"""Names and tags of everything that is deployed. All names begin with the setting `name`."""

import json
import os
from pathlib import Path

DEFAULT_NAME = "bin-counter"
NAME_VARIABLE = "BIN_COUNTER_NAME"
CDK_JSON = Path(__file__).parent.parent / "cdk.json"

# Tags that split the bill by copy of this project and by part.
PROJECT_KEY = "project"
PART_KEY = "part"  # data, budget, training, endpoint
COST_ALLOCATION_KEYS = (PROJECT_KEY, PART_KEY)


def chosen_name() -> str:
    """Return the name of the copy that a command works with.

    BIN_COUNTER_NAME comes first, then `name` in cdk.json, then the default.
    """
    name = os.environ.get(NAME_VARIABLE)
    return name or str(json.loads(CDK_JSON.read_text())["context"].get("name", DEFAULT_NAME))


def stack_name(name: str, stack: str) -> str:
    """Return CloudFormation's name of a stack; cdk's command line takes its id, `stack`."""
    return f"{name}-{stack}"


def group_name(name: str) -> str:
    """Return the Auto Scaling group that a launch starts."""
    return f"{name}-trainer"


def fallback_group_name(name: str) -> str:
    """Return the Auto Scaling group of on-demand machines, for purchase=spot_first."""
    return f"{name}-trainer-on-demand"


def model_parameter(name: str) -> str:
    return f"/{name}/model-uri"


def log_group_name(name: str) -> str:
    return f"/{name}/training"


def job_name_prefix(name: str) -> str:
    """Return the prefix of all SageMaker jobs and searches; the roles' permissions require it."""
    return f"{name}-"
