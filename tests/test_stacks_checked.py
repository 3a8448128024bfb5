"""What other checkers say of the stacks, and how `app.py` behaves as a command."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App, Stack
from aws_cdk import aws_ec2 as ec2
from cfnlint import ManualArgs
from cfnlint.api import lint_file
from synthesized import CDK_CONTEXT, ROOT, Template

from app import add_stacks


def run_app(folder: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run app.py as the CDK command line does: no account, and no way into a network."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_"))
    }
    nowhere = "http://127.0.0.1:9"
    return subprocess.run(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env=environment
        | {
            "CDK_OUTDIR": str(folder),
            "CDK_CONTEXT_JSON": json.dumps(CDK_CONTEXT | settings),
            "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere,
        },
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def synthesized_by_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that app.py wrote."""
    folder = tmp_path_factory.mktemp("cdk.out")
    result = run_app(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_cdk_nag_finds_nothing(
    stacks: dict[str, Template], other_stacks: dict[str, Template]
) -> None:
    for folder in (stacks["DataStack"].path.parent, other_stacks["DataStack"].path.parent):
        report = json.loads((folder / "validation-report.json").read_text())
        assert report["pluginReports"] == []


def test_nothing_is_looked_up_in_an_account(synthesized_by_app: Path) -> None:
    manifest = json.loads((synthesized_by_app / "manifest.json").read_text())
    assert "missing" not in manifest
    assert (
        manifest["artifacts"]["DataStack"]["environment"] == "aws://unknown-account/unknown-region"
    )


def test_cdk_nag_looks_at_all_stacks_of_the_app(tmp_path: Path) -> None:
    app = App(context=CDK_CONTEXT, outdir=str(tmp_path))
    add_stacks(app)
    ec2.Vpc(Stack(app, "Unwatched"), "Vpc", restrict_default_security_group=False)
    with pytest.raises(RuntimeError, match="does not have an associated Flow Log"):
        app.synth()


def acknowledgements(value: Any) -> Iterator[tuple[str, str]]:
    """Finding and reason of each acknowledgement in a stack's metadata."""
    for entries in value.values():
        for entry in entries:
            if entry["type"] == "aws:cdk:acknowledged-rules":
                yield from entry["data"].items()


def test_every_acknowledgement_has_a_reason(synthesized_by_app: Path) -> None:
    found = [
        pair
        for path in synthesized_by_app.glob("*.metadata.json")
        for pair in acknowledgements(json.loads(path.read_text()))
    ]
    assert found
    for finding, reason in found:
        assert len(reason.split()) >= 5, finding


def test_cfn_lint_finds_nothing(
    stacks: dict[str, Template], other_stacks: dict[str, Template]
) -> None:
    for template in [*stacks.values(), *other_stacks.values()]:
        findings = lint_file(template.path, ManualArgs(regions=["us-east-1"]))
        assert findings == []


def test_two_runs_give_the_same_templates_and_assets(
    synthesized_by_app: Path, stacks: dict[str, Template]
) -> None:
    for name, template in stacks.items():
        other = template.path.parent
        for kind in ("template", "assets"):
            file = f"{name}.{kind}.json"
            assert (other / file).read_bytes() == (synthesized_by_app / file).read_bytes()


def test_stack_ids_and_what_each_waits_for(synthesized_by_app: Path) -> None:
    artifacts = json.loads((synthesized_by_app / "manifest.json").read_text())["artifacts"]
    waits = {
        name: {d for d in artifact["dependencies"] if not d.endswith(".assets")}
        for name, artifact in artifacts.items()
        if artifact["type"] == "aws:cloudformation:stack"
    }
    assert waits == {
        "DataStack": set(),
        "BudgetStack": set(),
        "TrainStack": {"BudgetStack", "DataStack"},
        "EndpointStack": {"DataStack", "TrainStack"},
    }


def test_everything_is_tagged_with_the_project(stacks: dict[str, Template]) -> None:
    untagged = {
        resource["Type"]
        for template in stacks.values()
        for resource in template.resources.values()
        if "bin-counter" not in str(resource["Properties"].get("Tags"))
        and "bin-counter" not in str(resource["Properties"].get("TagSpecifications"))
    }
    assert untagged == {
        "AWS::Budgets::Budget",
        "AWS::EC2::Route",
        "AWS::EC2::SubnetRouteTableAssociation",
        "AWS::EC2::VPCGatewayAttachment",
        "AWS::IAM::InstanceProfile",
        "AWS::IAM::Policy",
        "AWS::S3::BucketPolicy",
        "AWS::SNS::TopicPolicy",
        "AWS::SSM::Parameter",
    }


def test_a_wrong_setting_is_one_line_and_nothing_is_synthesized(tmp_path: Path) -> None:
    folder = tmp_path / "cdk.out"
    result = run_app(folder, machine="tpu")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == (
        "error: setting machine='tpu': Input should be 'cpu' or 'gpu'"
    )
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("**/*.template.json"))
