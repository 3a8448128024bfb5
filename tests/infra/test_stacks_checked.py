"""What other checkers say of the stacks, and how `app.py` behaves as a command."""

import json
import os
import re
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

from app import add_stacks
from common.files import ROOT
from common.outputs import RegionsDifferError
from tests.support.synthesized import CDK_CONTEXT, Template

REGIONS = ["us-east-1", "eu-west-1", "ap-southeast-2"]
DOCKERFILE = ROOT / "serving" / "container" / "Dockerfile"
NOWHERE = "http://127.0.0.1:9"


def run_app(folder: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run app.py as the CDK command line does: no account, and no way into a network."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "CDK_"))
    }
    return subprocess.run(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env=environment
        | {
            "CDK_OUTDIR": str(folder),
            "CDK_CONTEXT_JSON": json.dumps(CDK_CONTEXT | settings),
            "HTTP_PROXY": NOWHERE,
            "HTTPS_PROXY": NOWHERE,
        },
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def synthesized_by_app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that app.py wrote."""
    folder = tmp_path_factory.mktemp("cdk.out")
    result = run_app(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture
def folders(stacks: dict[str, Template], other_stacks: dict[str, Template]) -> list[Path]:
    """Where the stacks of both settings were synthesized."""
    return [stacks["DataStack"].path.parent, other_stacks["DataStack"].path.parent]


def test_cdk_nag_finds_nothing(folders: list[Path]) -> None:
    for folder in folders:
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
    report = json.loads((tmp_path / "validation-report.json").read_text())
    packs = {pack["pluginName"] for pack in report["pluginReports"]}
    assert packs == {"AwsSolutions", "NIST.800.53.R5"}


def acknowledgements(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Construct, finding and reason of each acknowledgement to cdk-nag."""
    for path in folder.glob("*.metadata.json"):
        for construct, entries in json.loads(path.read_text()).items():
            for entry in entries:
                if entry["type"] == "aws:cdk:acknowledged-rules":
                    for finding, reason in entry["data"].items():
                        yield construct, finding, reason


def test_every_acknowledgement_has_a_reason(
    folders: list[Path], stacks: dict[str, Template], other_stacks: dict[str, Template]
) -> None:
    found = [
        (finding, reason) for folder in folders for _, finding, reason in acknowledgements(folder)
    ] + [
        pair
        for template in [*stacks.values(), *other_stacks.values()]
        for skips in template.checkov_skips().values()
        for pair in skips.items()
    ]
    assert found
    for finding, reason in found:
        assert len(reason.split()) >= 5, finding


def test_the_customer_key_answers_every_finding_about_keys(
    folders: list[Path], other_stacks: dict[str, Template]
) -> None:
    """All but one: S3 writes access logs only where its own key encrypts."""
    accepted = [
        {(c, f.split("-")[-1]) for c, f, _ in acknowledgements(folder) if "KMS" in f or "Enc" in f}
        for folder in folders
    ]
    logs = {("/DataStack/Data/AccessLogs", "S3DefaultEncryptionKMS")}
    assert accepted[0] > logs
    assert accepted[1] == logs
    skipped = {
        check for t in other_stacks.values() for s in t.checkov_skips().values() for check in s
    }
    assert skipped.isdisjoint({"CKV_AWS_26", "CKV_AWS_158"})


def test_cfn_lint_finds_nothing(folders: list[Path]) -> None:
    findings = [
        finding
        for folder in folders
        for path in folder.glob("*.template.json")
        for finding in lint_file(path, ManualArgs(regions=REGIONS))
    ]
    assert findings == []


def checkov(checked: list[Path], home: Path) -> list[Any]:
    """Checkov's reports on templates and on a Dockerfile, without a way into a network."""
    packages = Path(sys.prefix) / "checkov"
    files = [word for path in checked for word in ("--file", str(path))]
    frameworks = ["--framework", "cloudformation", "dockerfile"]
    flags = [*frameworks, "--skip-download", "--quiet", "--output", "json"]
    result = subprocess.run(
        [sys.executable, "-m", "checkov.main", *flags, *files],
        env={
            "PYTHONPATH": str(packages),
            "HOME": str(home),
            "HTTP_PROXY": NOWHERE,
            "HTTPS_PROXY": NOWHERE,
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    reports = json.loads(result.stdout)
    return reports if isinstance(reports, list) else [reports]


def test_checkov_finds_nothing(
    tmp_path: Path, stacks: dict[str, Template], other_stacks: dict[str, Template]
) -> None:
    templates = [*stacks.values(), *other_stacks.values()]
    reports = checkov([*(template.path for template in templates), DOCKERFILE], tmp_path)
    failed = [
        (c["check_id"], c["resource"]) for r in reports for c in r["results"]["failed_checks"]
    ]
    assert failed == []
    assert [r["summary"]["parsing_errors"] for r in reports] == [0, 0]
    report, image = sorted(reports, key=lambda report: str(report["check_type"]))
    assert image["summary"]["skipped"] == DOCKERFILE.read_text().count("checkov:skip")
    assert report["summary"]["passed"] > 100
    skips = [skip for t in templates for checks in t.checkov_skips().values() for skip in checks]
    assert report["summary"]["skipped"] == len(skips), "one that checkov does not know"


def test_checkov_looks_at_what_is_not_skipped(tmp_path: Path, stacks: dict[str, Template]) -> None:
    template = stacks["BudgetStack"].raw
    for resource in template["Resources"].values():
        resource.pop("Metadata", None)
    path = tmp_path / "template.json"
    path.write_text(json.dumps(template))
    (report,) = checkov([path], tmp_path)
    (finding,) = report["results"]["failed_checks"]
    assert finding["check_id"] == "CKV_AWS_26"


def test_two_runs_give_the_same_templates_and_assets(
    synthesized_by_app: Path, stacks: dict[str, Template]
) -> None:
    for name, template in stacks.items():
        other = template.path.parent
        for kind in ("template", "assets"):
            file = f"{name}.{kind}.json"
            assert (other / file).read_bytes() == (synthesized_by_app / file).read_bytes()


def waits(folder: Path) -> dict[str, set[str]]:
    """Stack id to the stacks that are deployed before it."""
    artifacts = json.loads((folder / "manifest.json").read_text())["artifacts"]
    return {
        name: {d for d in artifact["dependencies"] if not d.endswith(".assets")}
        for name, artifact in artifacts.items()
        if artifact["type"] == "aws:cloudformation:stack"
    }


def test_stack_ids_and_what_each_waits_for(synthesized_by_app: Path) -> None:
    assert waits(synthesized_by_app) == {
        "DataStack": set(),
        "BudgetStack": set(),
        "TrainStack": {"BudgetStack", "DataStack"},
        "EndpointStack": {"DataStack", "TrainStack"},
    }


def test_a_customer_key_is_there_before_alerts_are_encrypted(folders: list[Path]) -> None:
    assert waits(folders[1])["BudgetStack"] == {"DataStack"}


# What would be lost, or clash by name, if CloudFormation made it anew under another id.
STATEFUL = {
    "AWS::AutoScaling::AutoScalingGroup",
    "AWS::Budgets::Budget",
    "AWS::EC2::VPC",
    "AWS::KMS::Key",
    "AWS::Logs::LogGroup",
    "AWS::S3::Bucket",
    "AWS::SageMaker::Endpoint",
    "AWS::SNS::Subscription",
    "AWS::SNS::Topic",
    "AWS::SSM::Parameter",
}


def stateful(stacks: dict[str, Template]) -> dict[str, set[str]]:
    return {
        name: {id for id, r in template.resources.items() if r["Type"] in STATEFUL}
        for name, template in stacks.items()
    }


def test_the_ids_of_what_holds_state_stay(
    stacks: dict[str, Template], other_stacks: dict[str, Template]
) -> None:
    budgets = {"TotalBudget6996D3AE", "TrainingBudgetC91DB43F", "SageMakerBudget06C62AC3"}
    buckets = {"DataBucketE6B0FAA8", "DataAccessLogsC0C25EE4"}
    network_and_groups = {
        "NetworkVpc7FB7348F",
        "TrainerGroupASG66B6149B",
        "TrainerOnDemandGroupASG9CECA7B9",
    }
    assert stateful(stacks) == {
        "DataStack": buckets,
        "BudgetStack": budgets | {"Alerts91F83244"},
        "TrainStack": network_and_groups | {"Logs6819BB44", "Model0301700E"},
        "EndpointStack": {"EndpointServerless1DFDECC6"},
    }
    more = {name: ids - stateful(stacks)[name] for name, ids in stateful(other_stacks).items()}
    assert more == {
        "DataStack": {"CustomerKeyA9FF30A4"},
        "BudgetStack": {"Alertsyouexamplecom07A58F83"},
        "TrainStack": {"OverBudgetTotalBudget2770152E"},
        "EndpointStack": {"EndpointRealtimeABC69959"},
    }


def physical_names(stacks: dict[str, Template]) -> set[str]:
    """What CloudFormation is told to call something, instead of making up a name."""
    shared = {"MetricName", "PolicyName"}  # AWS's own, and each a role's or an endpoint's
    named = {
        value
        for template in stacks.values()
        for resource in template.resources.values()
        for key, value in resource.get("Properties", {}).items()
        if key.endswith("Name") and key not in shared
        if isinstance(value, str) and "<" not in value
    }
    manifest = json.loads((stacks["DataStack"].path.parent / "manifest.json").read_text())
    return named | {
        artifact["properties"]["stackName"]
        for artifact in manifest["artifacts"].values()
        if artifact["type"] == "aws:cloudformation:stack"
    }


def test_all_names_begin_with_one_setting_so_that_two_copies_share_none(
    stacks: dict[str, Template], other_stacks: dict[str, Template]
) -> None:
    first, second = physical_names(stacks), physical_names(other_stacks)
    assert len(first) >= 8
    assert {name for name in first if not re.match("/?bin-counter[-/]?", name)} == set()
    assert {name for name in second if not re.match("/?bins-dev[-/]?", name)} == set()
    assert not first & second


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


def test_no_stacks_are_made_for_two_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    app = App()
    with pytest.raises(RegionsDifferError, match="run `export AWS_DEFAULT_REGION="):
        add_stacks(app)
    assert not [child for child in app.node.children if isinstance(child, Stack)]
