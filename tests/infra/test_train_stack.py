import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infra.train_stack import USER_DATA
from tests.support.synthesized import Template


@pytest.fixture
def template(stacks: dict[str, Template]) -> Template:
    return stacks["TrainStack"]


@pytest.fixture
def groups(template: Template) -> list[dict[str, Any]]:
    return template.of_type("AWS::AutoScaling::AutoScalingGroup")


@pytest.fixture
def group(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """The one that a launch starts."""
    return groups[0]


@pytest.fixture
def machine(template: Template) -> dict[str, Any]:
    data: dict[str, Any] = template.only("AWS::EC2::LaunchTemplate")["LaunchTemplateData"]
    return data


def test_outputs_and_fixed_names(template: Template, group: dict[str, Any]) -> None:
    assert set(template.raw["Outputs"]) == {
        "GroupNames",
        "LauncherRoleArn",
        "ModelParameterName",
        "PreparationJobRoleArn",
        "TrainingJobRoleArn",
    }
    assert group["AutoScalingGroupName"] == "bin-counter-trainer"
    assert template.only("AWS::Logs::LogGroup")["LogGroupName"] == "/bin-counter/training"
    assert template.only("AWS::SSM::Parameter")["Name"] == "/bin-counter/model-uri"


def test_groups_rest_at_zero_and_a_deploy_leaves_them_as_they_are(
    groups: list[dict[str, Any]],
) -> None:
    for group in groups:
        assert (group["MinSize"], group["MaxSize"]) == ("0", "1")
        assert "DesiredCapacity" not in group
        assert group["CapacityRebalance"] is False


def test_the_fallback_differs_in_how_it_buys_alone(groups: list[dict[str, Any]]) -> None:
    first, fallback = groups
    assert fallback["AutoScalingGroupName"] == "bin-counter-trainer-on-demand"
    distribution = fallback["MixedInstancesPolicy"]["InstancesDistribution"]
    assert distribution["OnDemandPercentageAboveBaseCapacity"] == 100
    differing = {"AutoScalingGroupName", "MixedInstancesPolicy"}
    assert {name for name in first if first[name] != fallback[name]} == differing
    templates = [group["MixedInstancesPolicy"]["LaunchTemplate"] for group in groups]
    assert templates[0] == templates[1]


def test_all_zones_are_used_where_the_cdk_knows_the_account(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from aws_cdk import App, Stack  # takes seconds, and a process of Node's
    from aws_cdk.assertions import Template as Synthesized

    from infra.network import TrainingNetwork

    def subnets(zones: list[str]) -> dict[str, str]:
        key = "availability-zones:account=123456789012:region=eu-west-1"
        stack = Stack(App(context={key: zones}), "Stack")
        TrainingNetwork(stack, "Network")
        found = Synthesized.from_stack(stack).find_resources("AWS::EC2::Subnet").values()
        given = (subnet["Properties"] for subnet in found)
        return {each["AvailabilityZone"]: each["CidrBlock"] for each in given}

    def missing() -> Any:
        app = App(outdir=str(tmp_path))
        TrainingNetwork(Stack(app, "Stack"), "Network")
        app.synth()
        return json.loads((tmp_path / "manifest.json").read_text()).get("missing", [])

    assert not missing(), "nothing to look up without an account"
    monkeypatch.setenv("CDK_DEFAULT_ACCOUNT", "123456789012")
    monkeypatch.setenv("CDK_DEFAULT_REGION", "eu-west-1")
    (asked,) = missing()  # of all that this app has
    assert asked["key"] == "availability-zones:account=123456789012:region=eu-west-1"
    two = subnets(["eu-west-1a", "eu-west-1b"])
    three = subnets(["eu-west-1a", "eu-west-1b", "eu-west-1c", "eu-west-1-lon-1a"])
    assert list(three) == ["eu-west-1a", "eu-west-1b", "eu-west-1c"]
    assert two.items() < three.items(), "one more moves none of the others"


def test_machines_are_spot_of_several_types_and_zones(group: dict[str, Any]) -> None:
    distribution = group["MixedInstancesPolicy"]["InstancesDistribution"]
    assert distribution["OnDemandBaseCapacity"] == 0
    assert distribution["OnDemandPercentageAboveBaseCapacity"] == 0
    assert distribution["SpotAllocationStrategy"] == "price-capacity-optimized"
    overrides = group["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"]
    assert len({override["InstanceType"] for override in overrides}) >= 3
    assert len(group["VPCZoneIdentifier"]) == 2


def test_on_demand_gpu_machines_are_two_settings(other_stacks: dict[str, Template]) -> None:
    template = other_stacks["TrainStack"]
    policy = template.only("AWS::AutoScaling::AutoScalingGroup")["MixedInstancesPolicy"]
    assert policy["InstancesDistribution"]["OnDemandPercentageAboveBaseCapacity"] == 100
    assert policy["LaunchTemplate"]["Overrides"][0] == {"InstanceType": "g4dn.xlarge"}
    images = [p["Default"] for p in template.raw["Parameters"].values() if "Image" in p["Type"]]
    assert "deeplearning" in images[0]


def test_a_run_without_a_machine_is_told_to_the_topic_once(
    template: Template, groups: list[dict[str, Any]]
) -> None:
    alarm = template.only("AWS::CloudWatch::Alarm")
    (topic,) = alarm["AlarmActions"]
    assert "BudgetStack" in topic
    assert "training.launch status" in alarm["AlarmDescription"]
    metrics = [each["MetricStat"]["Metric"] for each in alarm["Metrics"] if "MetricStat" in each]
    of_groups = {metric["Dimensions"][0]["Value"] for metric in metrics}
    assert of_groups == {group["AutoScalingGroupName"] for group in groups}
    assert alarm["EvaluationPeriods"] == 30, "longer than the fallback takes"
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("GreaterThanThreshold", 0)
    for group in groups:
        assert "NotificationConfigurations" not in group, "it would be a mail for each try"


@pytest.mark.parametrize(
    ("wanted", "there", "waits"),
    [
        ((0, 0), (0, 0), 0),
        ((1, 0), (0, 0), 1),
        ((0, 1), (0, 0), 1),
        ((1, 0), (1, 0), 0),
        ((1, 1), (0, 1), 0),
        ((1, None), (None, None), 1),
        ((None, None), (None, None), 0),
    ],
)
def test_a_run_waits_that_asks_for_a_machine_and_has_none(
    template: Template,
    wanted: tuple[int | None, ...],
    there: tuple[int | None, ...],
    waits: int,
) -> None:
    """CloudWatch's expression in Python's words: FILL stands for what a group does not report."""
    metrics = template.only("AWS::CloudWatch::Alarm")["Metrics"]
    (expression,) = (each["Expression"] for each in metrics if "Expression" in each)
    stat = {each["Id"]: each["MetricStat"]["Metric"] for each in metrics if "MetricStat" in each}
    numbers = {"GroupDesiredCapacity": wanted, "GroupInServiceInstances": there}
    values = {name: numbers[metric["MetricName"]][int(name[-1])] for name, metric in stat.items()}
    words = {
        "FILL": lambda value, filled: filled if value is None else value,
        "IF": lambda condition, yes, no: yes if condition else no,
    }
    assert eval(expression.replace("AND", "and"), words, values) == waits


def test_powering_off_ends_a_machine(machine: dict[str, Any]) -> None:
    assert machine["InstanceInitiatedShutdownBehavior"] == "terminate"


def test_the_group_would_reject_market_options_in_the_template(machine: dict[str, Any]) -> None:
    assert "InstanceMarketOptions" not in machine


def test_a_machine_speaks_imdsv2_only_and_not_for_containers(
    stacks: dict[str, Template], other_stacks: dict[str, Template]
) -> None:
    for template in (stacks["TrainStack"], other_stacks["TrainStack"]):
        machine = template.only("AWS::EC2::LaunchTemplate")["LaunchTemplateData"]
        assert machine["MetadataOptions"] == {
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
        }


def test_the_disk_is_encrypted_and_goes_with_the_machine(
    stacks: dict[str, Template], other_stacks: dict[str, Template]
) -> None:
    """Its key, with -c kms=customer, is looked at in test_customer_key.py."""
    for template, gib in ((stacks["TrainStack"], 30), (other_stacks["TrainStack"], 100)):
        machine = template.only("AWS::EC2::LaunchTemplate")["LaunchTemplateData"]
        (disk,) = machine["BlockDeviceMappings"]
        assert {name: value for name, value in disk["Ebs"].items() if name != "KmsKeyId"} == {
            "DeleteOnTermination": True,
            "Encrypted": True,
            "VolumeSize": gib,
            "VolumeType": "gp3",
        }


def test_tags_reach_machines_and_disks(machine: dict[str, Any], group: dict[str, Any]) -> None:
    project = {"Key": "project", "Value": "bin-counter"}
    for specification in machine["TagSpecifications"]:
        assert project in specification["Tags"]
    assert {s["ResourceType"] for s in machine["TagSpecifications"]} == {"instance", "volume"}
    assert project | {"PropagateAtLaunch": True} in group["Tags"]


def test_a_machine_has_a_public_address_and_no_way_in(
    template: Template, machine: dict[str, Any]
) -> None:
    assert machine["NetworkInterfaces"][0]["AssociatePublicIpAddress"] is True
    security_group = template.only("AWS::EC2::SecurityGroup")
    assert "SecurityGroupIngress" not in security_group
    assert template.of_type("AWS::EC2::SecurityGroupIngress") == []
    assert [
        (rule["IpProtocol"], rule["ToPort"]) for rule in security_group["SecurityGroupEgress"]
    ] == [("tcp", 443)]
    assert "KeyName" not in machine


def test_only_the_machine_asks_for_a_public_address(template: Template) -> None:
    for subnet in template.of_type("AWS::EC2::Subnet"):
        assert subnet["MapPublicIpOnLaunch"] is False


def test_traffic_to_s3_is_free_and_no_nat_gateway_costs(template: Template) -> None:
    assert template.of_type("AWS::EC2::NatGateway") == []
    assert template.only("AWS::EC2::VPCEndpoint")["ServiceName"] == "com.amazonaws.<AWS::Region>.s3"


def test_user_data_is_the_exports_and_the_boot_script(machine: dict[str, Any]) -> None:
    lines = machine["UserData"].splitlines()
    assert lines[0] == "#!/bin/bash"
    exports = dict(line.removeprefix("export ").split("=", 1) for line in lines[1:8])
    assert {name: value.strip("'") for name, value in exports.items()} == {
        "BUCKET": "<bin-counter-DataStack:ExportsOutputRefDataBucketE6B0FAA83794BF10>",
        "GROUP_NAMES": "bin-counter-trainer bin-counter-trainer-on-demand",
        "MODEL_PARAMETER": "/bin-counter/model-uri",
        "TOPIC_ARN": "<bin-counter-BudgetStack:ExportsOutputRefAlerts91F83244F0271852>",
        "LOG_GROUP": "/bin-counter/training",
        "AWS_DEFAULT_REGION": "<AWS::Region>",
        "VOLUME_GIB": "30",
    }
    assert machine["UserData"].endswith(USER_DATA.read_text())
    assert len(machine["UserData"].encode()) < 16 * 1024, "EC2's limit"


def test_user_data_is_valid_bash(machine: dict[str, Any]) -> None:
    subprocess.run(["bash", "-n"], input=machine["UserData"], text=True, check=True)


def test_there_is_no_model_at_first(template: Template) -> None:
    assert template.only("AWS::SSM::Parameter")["Value"].startswith(
        "none: run python -m training.launch"
    )


def test_logs_expire(template: Template) -> None:
    assert template.only("AWS::Logs::LogGroup")["RetentionInDays"] == 30


def test_who_takes_which_role(template: Template) -> None:
    principals = {
        name.rstrip("0123456789ABCDEF"): role["Properties"]["AssumeRolePolicyDocument"][
            "Statement"
        ][0]["Principal"]
        for name, role in template.resources.items()
        if role["Type"] == "AWS::IAM::Role"
    }
    assert principals == {
        "TrainerMachineRole": {"Service": "ec2.amazonaws.com"},
        "PreparationJobRole": {"Service": "sagemaker.amazonaws.com"},
        "TrainingJobRole": {"Service": "sagemaker.amazonaws.com"},
        "LauncherRole": {"AWS": "arn:<AWS::Partition>:iam::<AWS::AccountId>:root"},
    }


def test_no_role_has_a_policy_written_by_others(template: Template) -> None:
    for role in template.of_type("AWS::IAM::Role"):
        assert "ManagedPolicyArns" not in role
