"""What is deployed is called, and tagged: all names begin with one setting. Imports no CDK."""

import json
import os
from pathlib import Path

DEFAULT_NAME = "bin-counter"
NAME_VARIABLE = "BIN_COUNTER_NAME"
CDK_JSON = Path(__file__).parent.parent / "cdk.json"

# The tags that split the bill: which copy of this project, which part of it.
PROJECT_KEY = "project"
PART_KEY = "part"  # data, budget, training, endpoint
COST_ALLOCATION_KEYS = (PROJECT_KEY, PART_KEY)


def chosen_name() -> str:
    """The setting `name` of the copy that a command works with: BIN_COUNTER_NAME, cdk.json's, or
    the default."""
    said = os.environ.get(NAME_VARIABLE)
    return said or str(json.loads(CDK_JSON.read_text())["context"].get("name", DEFAULT_NAME))


def stack_name(name: str, stack: str) -> str:
    """What CloudFormation calls a stack; on the command line its id alone will do."""
    return f"{name}-{stack}"


def group_name(name: str) -> str:
    """The group that a launch starts."""
    return f"{name}-trainer"


def fallback_group_name(name: str) -> str:
    """The group of on-demand machines, where `purchase` is spot_first."""
    return f"{name}-trainer-on-demand"


def model_parameter(name: str) -> str:
    return f"/{name}/model-uri"


def log_group_name(name: str) -> str:
    return f"/{name}/training"


def job_name_prefix(name: str) -> str:
    """How all names of jobs and searches on SageMaker begin: the roles' permissions are for it."""
    return f"{name}-"
