"""Each setting of infra/config.py, alone and with those that it meets, through cfn-lint."""

from pathlib import Path
from typing import Any

import pytest
from cfnlint import ManualArgs
from cfnlint.api import lint_file

from infra.config import Config
from tests.support.synthesized import synthesize

REGIONS = ["us-east-1", "eu-west-1", "ap-southeast-2"]
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/team/bins:1.0"
OTHERWISE: dict[str, Any] = {  # than the default
    "name": "bins-dev",
    "alert_email": "you@example.com",
    "budgets": "no",
    "monthly_budget_usd": "30",
    "training_budget_usd": "5",
    "sagemaker_budget_usd": "5",
    "alert_percentages": "10,20,30,40,100",
    "over_budget": "deny",
    "cost_dashboard": "yes",
    "kms": "customer",
    "on_destroy": "delete",
    "machine": "gpu",
    "instance_types": "c7i.xlarge",
    "ami_parameter": "/mine/image",
    "volume_gib": "50",
    "purchase": "on_demand",
    "endpoint": "realtime",
    "endpoint_memory_mb": "6144",
    "endpoint_max_concurrency": "1",
    "endpoint_instance_type": "ml.c6i.large",
    "endpoint_instances": "2",
    "endpoint_max_instances": "4",
    "endpoint_traffic": "linear",
    "endpoint_capture_percentage": "0",
    "serving_image": IMAGE,
}
# A setting that says nothing without these.
NEEDS: dict[str, dict[str, str]] = {
    "endpoint_instance_type": {"endpoint": "realtime"},
    "endpoint_instances": {"endpoint": "realtime"},
    "endpoint_max_instances": {"endpoint": "realtime"},
    "endpoint_traffic": {"endpoint": "realtime", "endpoint_instances": "2"},
    "endpoint_capture_percentage": {"endpoint": "realtime"},
}
TOGETHER = [
    ("kms", "over_budget"),
    ("kms", "endpoint"),
    ("kms", "endpoint", "endpoint_capture_percentage"),
    ("kms", "machine", "over_budget", "endpoint", "cost_dashboard", "purchase"),
    ("kms", "budgets", "endpoint", "on_destroy"),
    ("machine", "purchase"),
    ("name", "kms", "over_budget", "endpoint"),
    ("alert_email", "kms", "over_budget", "cost_dashboard"),
]


def test_no_setting_is_left_out() -> None:
    assert OTHERWISE.keys() == Config.model_fields.keys()
    default = Config.from_context({})
    for name, value in OTHERWISE.items():
        changed = Config.from_context({name: value} | NEEDS.get(name, {}))
        assert getattr(changed, name) != getattr(default, name)


@pytest.mark.slow
@pytest.mark.parametrize("names", [*((name,) for name in OTHERWISE), *TOGETHER], ids="+".join)
def test_cfn_lint_finds_nothing_with(names: tuple[str, ...], tmp_path: Path) -> None:
    settings = {name: OTHERWISE[name] for name in names}
    for name in names:
        settings |= NEEDS.get(name, {}) | {name: OTHERWISE[name]}
    assert findings(settings, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), [("purchase", "spot"), ("endpoint_traffic", "canary")])
def test_nor_with_a_third_choice(name: str, value: str, tmp_path: Path) -> None:
    assert findings(NEEDS.get(name, {}) | {name: value}, tmp_path) == []


def findings(settings: dict[str, Any], folder: Path) -> list[Any]:
    """What cfn-lint says of the templates with `settings`, made in `folder`."""
    synthesize(folder, **settings)
    return [
        finding
        for path in folder.glob("*.template.json")
        for finding in lint_file(path, ManualArgs(regions=REGIONS))
    ]
