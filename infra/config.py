"""Every setting of the stacks: read once from cdk.json's context, validated.

`-c name=value` sets one for a single command: the next deploy without it reverts it.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from common.names import DEFAULT_NAME, NAME_VARIABLE, fallback_group_name, group_name

# Context keys of the CDK command line itself; its other keys contain ":" or start with "@".
CDK_KEYS = {"cli-telemetry", "acknowledged-issue-numbers"}

# Defaults that depend on the kind of machine. CPU types have 2 vCPUs and are not burstable. The
# quotas of a new account allow 5 spot vCPUs of these, and none of GPU types.
MACHINE_DEFAULTS: dict[object, dict[str, object]] = {
    "cpu": {
        "instance_types": (
            "c7i.large",
            "m7i.large",
            "c6i.large",
            "m6i.large",
            "c7i-flex.large",
            "m7i-flex.large",
        ),
        "ami_parameter": "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64",
        "volume_gib": 30,
    },
    "gpu": {
        "instance_types": ("g4dn.xlarge", "g5.xlarge", "g6.xlarge"),
        "ami_parameter": "/aws/service/deeplearning/ami/x86_64/"
        "oss-nvidia-driver-gpu-pytorch-2.13-amazon-linux-2023/latest/ami-id",
        "volume_gib": 100,
    },
}


class SettingError(ValueError):
    """Wrong settings; the message has a line for each, with its value and what is allowed."""


def _split_commas(value: object) -> object:
    """Split the value of `-c SETTING=a,b`, as the command line passes only strings."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


CommaSeparated = BeforeValidator(_split_commas)
InstanceType = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*\.[a-z0-9-]+$")]
Percentage = Annotated[int, Field(ge=1, le=100)]
Dollars = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Config(BaseModel, frozen=True, extra="forbid"):
    """The settings, as `Config.from_context` reads them."""

    name: str = Field(
        default_factory=lambda: os.environ.get(NAME_VARIABLE) or DEFAULT_NAME,
        validate_default=True,
        # SageMaker allows 32 characters for the name of a search, which begins with this.
        pattern=r"^[a-z][a-z0-9-]{1,16}[a-z0-9]$",
        examples=["bins-dev"],
    )
    """Prefix of all names; another name deploys another copy."""
    alert_email: str | None = Field(
        default=None, pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$", examples=["you@example.com"]
    )
    """Address for budget alerts and training notices, besides the SNS topic."""
    budgets: Literal["yes", "no"] = "yes"
    """no: leave out the budgets, in an account that cannot create any yet."""
    monthly_budget_usd: Dollars = 20
    """Monthly budget of the account in US dollars."""
    training_budget_usd: Dollars = 10
    """Monthly budget of EC2 machines in US dollars."""
    sagemaker_budget_usd: Dollars = 10
    """Monthly budget of SageMaker in US dollars."""
    alert_percentages: Annotated[tuple[Percentage, ...], CommaSeparated] = Field(
        default=(50, 80, 100), min_length=1, max_length=5, examples=["50,80,100"]
    )
    """Percentages of a budget that raise an alert, when spent and when forecast."""
    over_budget: Literal["alert", "deny"] = "alert"
    """deny: new runs are blocked once the monthly budget is spent."""
    cost_dashboard: Literal["no", "yes"] = "no"
    """A Billing and Cost Management dashboard that compares EC2 and SageMaker; us-east-1 only."""
    kms: Literal["aws", "customer"] = "aws"
    """Key that encrypts stored data: AWS's own, or one of yours ($1 a month)."""
    on_destroy: Literal["keep", "delete"] = "keep"
    """What `cdk destroy` does with the data bucket and its logs."""
    machine: Literal["cpu", "gpu"] = "cpu"
    """Kind of training machine; sets the defaults of the next three settings."""
    instance_types: Annotated[tuple[InstanceType, ...], CommaSeparated] = Field(
        min_length=1, max_length=40, examples=["c7i.large,m7i.large"]
    )
    """EC2 types (x86_64) for training machines."""
    ami_parameter: str = Field(
        pattern=r"^/[\w./-]+$", examples=[MACHINE_DEFAULTS["cpu"]["ami_parameter"]]
    )
    """SSM parameter with the image's id; Amazon Linux 2023 or derived from it."""
    volume_gib: int = Field(ge=8, le=1000)
    """Disk of a training machine in GiB, at least the size of the image."""
    purchase: Literal["spot_first", "spot", "on_demand"] = "spot_first"
    """How training machines are bought; spot_first: on demand if no spot machine works on the run
    within `launch --fallback-minutes`."""
    endpoint: Literal["serverless", "realtime"] = "serverless"
    """serverless costs nothing while idle; realtime costs by the hour."""
    endpoint_memory_mb: int = Field(default=2048, ge=1024, le=6144, multiple_of=1024)
    """Memory of the serverless endpoint in MB."""
    endpoint_max_concurrency: int = Field(default=5, ge=1, le=5)
    """Concurrent calls of the serverless endpoint; a new account has 10 in total."""
    endpoint_instance_type: str = Field(
        default="ml.m5.large",
        pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$",
        examples=["ml.m5.large"],
    )
    """Machine of the real-time endpoint."""
    endpoint_instances: int = Field(default=1, ge=1, le=4)
    """Minimum number of machines of the real-time endpoint."""
    endpoint_max_instances: int = Field(default=2, ge=1, le=8)
    """Maximum number of machines of the real-time endpoint, under load."""
    endpoint_traffic: Literal["all_at_once", "canary", "linear"] = "all_at_once"
    """How traffic shifts to a new model of a real-time endpoint; canary and linear need 2
    machines."""
    endpoint_capture_percentage: int = Field(default=10, ge=0, le=100)
    """Percentage of a real-time endpoint's calls that is stored in the bucket for 30 days."""
    serving_image: str | None = Field(
        default=None,
        pattern=r"^\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com(\.cn)?/[a-z0-9._/-]+[:@][\w.:-]+$",
        examples=["123456789012.dkr.ecr.us-east-1.amazonaws.com/bin-counter:1.0"],
    )
    """ECR image of the endpoint, in Docker's format (SageMaker refuses OCI's); by default, Docker
    builds one from serving/container/."""

    @model_validator(mode="before")
    @classmethod
    def _fill_machine_defaults(cls, settings: dict[str, object]) -> dict[str, object]:
        return {**MACHINE_DEFAULTS.get(settings.get("machine", "cpu"), {}), **settings}

    @model_validator(mode="after")
    def _check_name(self) -> "Config":
        if self.name.startswith(("aws", "ssm")):  # refused by Parameter Store
            raise ValueError(f"name={self.name}: must not begin with aws or ssm")
        said = os.environ.get(NAME_VARIABLE)
        if said and said != self.name:
            raise ValueError(f"name is {self.name}, but {NAME_VARIABLE} is {said}: unset one")
        return self

    @model_validator(mode="after")
    def _check_endpoint(self) -> "Config":
        if self.endpoint_max_instances < self.endpoint_instances:
            raise ValueError("endpoint_max_instances is less than endpoint_instances")
        if self.endpoint_traffic != "all_at_once" and self.endpoint_instances < 2:
            raise ValueError(f"endpoint_traffic={self.endpoint_traffic} needs endpoint_instances=2")
        return self

    @model_validator(mode="after")
    def _check_budgets(self) -> "Config":
        if self.over_budget == "deny" and self.budgets == "no":
            raise ValueError("over_budget=deny needs a budget: remove budgets=no")
        return self

    @property
    def group_names(self) -> list[str]:
        """The group that a launch starts and, with spot_first, the one of on-demand machines."""
        fallback = [fallback_group_name(self.name)] if self.purchase == "spot_first" else []
        return [group_name(self.name), *fallback]

    @classmethod
    def from_context(cls, context: Mapping[str, object]) -> "Config":
        """Read the settings from a CDK app's context.

        Raises:
            SettingError: a setting is unknown or has a value that is not allowed.
        """
        settings = {
            name: value
            for name, value in context.items()
            if name not in CDK_KEYS and ":" not in name and not name.startswith("@")
        }
        try:
            return cls.model_validate(settings)
        except ValidationError as error:
            raise SettingError("\n".join(_explain(error))) from error


def _explain(error: ValidationError) -> list[str]:
    """One line for each setting in `error`."""
    lines: dict[str, str] = {}
    for problem in error.errors():
        if not problem["loc"]:  # two settings that contradict each other
            lines.setdefault("", f"settings: {problem['msg'].removeprefix('Value error, ')}")
            continue
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            allowed = f"no such setting; there are {', '.join(Config.model_fields)}"
        elif problem["type"] == "missing":
            continue  # its default depends on machine, for which there is a line
        else:
            examples = Config.model_fields[name].examples
            allowed = problem["msg"] + (f", for example {examples[0]}" if examples else "")
            if problem["type"] == "string_pattern_mismatch" and examples:
                allowed = f"should look like {examples[0]}"
        lines.setdefault(name, f"setting {name}={problem['input']!r}: {allowed}")
    return list(lines.values())
