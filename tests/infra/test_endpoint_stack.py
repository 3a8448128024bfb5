from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aws_cdk import App, Stack
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns

from common.names import DEFAULT_NAME, model_parameter
from infra.config import Config
from infra.endpoint_scaling import calls_per_minute
from infra.endpoint_stack import EndpointStack
from infra.train_stack import NO_MODEL
from tests.support.cloudformation import DeployedStack
from tests.support.synthesized import CDK_CONTEXT, Template

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/bin-counter:1.0"
REALTIME = "bins-dev-realtime-m5-large"
ALARM_ARN = "arn:<AWS::Partition>:cloudwatch:<AWS::Region>:<AWS::AccountId>:alarm:"

Synthesize = Callable[..., Template]


@pytest.fixture
def template(stacks: dict[str, Template]) -> Template:
    return stacks["EndpointStack"]


@pytest.fixture
def realtime(other_stacks: dict[str, Template]) -> Template:
    """Two to four machines, canary, customer key."""
    return other_stacks["EndpointStack"]


@pytest.fixture
def synthesize(tmp_path: Path) -> Synthesize:
    """EndpointStack alone with any settings, beside a stack that holds what it is given."""

    def synthesize(**settings: object) -> Template:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        app = App(context=CDK_CONTEXT | {"serving_image": IMAGE} | settings, outdir=str(folder))
        config = Config.from_context(app.node.get_all_context())
        given = Stack(app, "Given")
        EndpointStack(
            app,
            "EndpointStack",
            config=config,
            bucket=s3.Bucket(given, "Bucket"),
            alerts=sns.Topic(given, "Alerts"),
            key=kms.Key(given, "Key") if config.kms == "customer" else None,
        )
        app.synth()
        return Template(folder / "EndpointStack.template.json")

    return synthesize


def variant(template: Template) -> dict[str, Any]:
    (variant,) = template.only("AWS::SageMaker::EndpointConfig")["ProductionVariants"]
    return dict(variant)


def alarms(template: Template) -> dict[str, dict[str, Any]]:
    """Last word of the name to properties."""
    found = template.of_type("AWS::CloudWatch::Alarm")
    return {alarm["AlarmName"].removeprefix(f"{REALTIME}-"): alarm for alarm in found}


def rollout(template: Template) -> dict[str, Any]:
    """How traffic goes over to new machines."""
    deployment = template.only("AWS::SageMaker::Endpoint")["DeploymentConfig"]
    return dict(deployment["BlueGreenUpdatePolicy"])


def test_its_one_output_is_the_endpoint_name(template: Template) -> None:
    assert list(template.raw["Outputs"]) == ["EndpointName"]


def test_the_model_is_the_one_the_parameter_points_at(template: Template) -> None:
    parameter = template.raw["Parameters"]["ModelUri"]
    assert parameter["Type"] == "AWS::SSM::Parameter::Value<String>"
    assert parameter["Default"] == model_parameter(DEFAULT_NAME)
    container = template.only("AWS::SageMaker::Model")["PrimaryContainer"]
    assert container["ModelDataUrl"] == "<ModelUri>"


def test_without_a_model_the_deploy_says_to_train_first(template: Template) -> None:
    (assertion,) = template.raw["Rules"]["ModelExists"]["Assertions"]
    assert assertion["Assert"] == {"Fn::Not": [{"Fn::Equals": [{"Ref": "ModelUri"}, NO_MODEL]}]}
    assert assertion["AssertDescription"] == "no model yet: run python -m training.launch first"


def test_only_the_endpoint_has_a_name(template: Template) -> None:
    assert "ModelName" not in template.only("AWS::SageMaker::Model")
    assert "EndpointConfigName" not in template.only("AWS::SageMaker::EndpointConfig")
    assert template.only("AWS::SageMaker::Endpoint")["EndpointName"] == "bin-counter-serverless"


def test_serverless_costs_nothing_while_idle(template: Template) -> None:
    assert variant(template)["ServerlessConfig"] == {"MaxConcurrency": 5, "MemorySizeInMB": 2048}
    assert "InstanceType" not in variant(template)
    assert template.of_type("AWS::CloudWatch::Alarm") == []


def test_serverless_is_asked_for_nothing_that_it_does_not_know(synthesize: Synthesize) -> None:
    template = synthesize(endpoint="serverless", endpoint_capture_percentage=50)
    assert "EnableNetworkIsolation" not in template.only("AWS::SageMaker::Model")
    assert "DataCaptureConfig" not in template.only("AWS::SageMaker::EndpointConfig")
    assert template.only("AWS::SageMaker::Endpoint").keys() == {
        "EndpointConfigName",
        "EndpointName",
    }
    assert template.of_type("AWS::ApplicationAutoScaling::ScalableTarget") == []
    assert template.statements("ExecutionRole").keys() == {
        *("ReadModel", "PullImage", "LogIn", "Log", "Measure")
    }


def test_realtime_is_on_the_machines_asked_for_without_a_way_out(synthesize: Synthesize) -> None:
    template = synthesize(
        endpoint="realtime", endpoint_instance_type="ml.c5.xlarge", endpoint_instances=2
    )
    assert variant(template)["InstanceType"] == "ml.c5.xlarge"
    assert variant(template)["InitialInstanceCount"] == 2
    assert "ServerlessConfig" not in variant(template)
    assert template.only("AWS::SageMaker::Model")["EnableNetworkIsolation"] is True


# Errors, slow answers, and a day without a call.


def test_alarms_go_to_the_topic_and_name_the_endpoint(realtime: Template) -> None:
    found = alarms(realtime)
    assert found.keys() == {"errors", "latency", "idle"}
    for alarm in found.values():
        (action,) = alarm["AlarmActions"]
        assert action.startswith("<bins-dev-BudgetStack:")
    for kind in ("errors", "latency"):
        assert found[kind]["Dimensions"] == [
            {"Name": "EndpointName", "Value": REALTIME},
            {"Name": "VariantName", "Value": variant(realtime)["VariantName"]},
        ]
    assert realtime.only("AWS::SageMaker::Endpoint")["EndpointName"] == REALTIME


def test_one_answer_of_5xx_rings(realtime: Template) -> None:
    alarm = alarms(realtime)["errors"]
    assert (alarm["Namespace"], alarm["MetricName"]) == ("AWS/SageMaker", "Invocation5XXErrors")
    assert (alarm["Statistic"], alarm["Period"], alarm["EvaluationPeriods"]) == ("Sum", 60, 1)
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("GreaterThanThreshold", 0)


def test_a_slow_hundredth_rings_after_three_minutes(realtime: Template) -> None:
    alarm = alarms(realtime)["latency"]
    assert (alarm["Namespace"], alarm["MetricName"]) == ("AWS/SageMaker", "ModelLatency")
    assert (alarm["ExtendedStatistic"], alarm["Period"]) == ("p99", 60)
    assert alarm["EvaluationPeriods"] == 3
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("GreaterThanThreshold", 1_000_000)


def test_a_day_without_a_call_rings_and_a_new_endpoint_does_not(realtime: Template) -> None:
    """Hours count from when machines report: no call is no data, and so is no machine yet."""
    alarm = alarms(realtime)["idle"]
    metrics = {metric["Id"]: metric for metric in alarm["Metrics"]}
    (sum_,) = (metric for metric in metrics.values() if metric["ReturnData"])
    assert sum_["Expression"] == "calls + 0 * machines"
    hours = {
        id: (stat["Metric"]["Namespace"], stat["Metric"]["MetricName"], stat["Stat"])
        for id in ("calls", "machines")
        if (stat := metrics[id]["MetricStat"])["Period"] == 3600
    }
    assert hours == {
        "calls": ("AWS/SageMaker", "Invocations", "Sum"),
        "machines": ("/aws/sagemaker/Endpoints", "CPUUtilization", "SampleCount"),
    }
    assert (alarm["ComparisonOperator"], alarm["Threshold"]) == ("LessThanThreshold", 1)
    assert alarm["EvaluationPeriods"] == 24
    assert alarm["TreatMissingData"] == "notBreaching"


# A new model takes over, or is taken back.


def test_a_new_model_is_taken_back_by_alarms_that_are_quiet_without_calls(
    realtime: Template,
) -> None:
    deployment = realtime.only("AWS::SageMaker::Endpoint")["DeploymentConfig"]
    names = [alarm["AlarmName"] for alarm in deployment["AutoRollbackConfiguration"]["Alarms"]]
    assert names == [f"{REALTIME}-errors", f"{REALTIME}-latency"]
    for kind in ("errors", "latency"):
        assert alarms(realtime)[kind]["TreatMissingData"] == "notBreaching"
    assert realtime.statements("ExecutionRole")["WatchRollout"]["Resource"] == [
        ALARM_ARN + name for name in names
    ]


def test_the_alarms_are_there_before_the_endpoint(realtime: Template) -> None:
    (endpoint,) = (
        r for r in realtime.resources.values() if r["Type"] == "AWS::SageMaker::Endpoint"
    )
    waits = {realtime.resources[name]["Type"] for name in endpoint["DependsOn"]}
    assert waits == {"AWS::CloudWatch::Alarm"}


def test_one_machine_hands_over_at_once(synthesize: Synthesize) -> None:
    routing = rollout(synthesize(endpoint="realtime"))["TrafficRoutingConfiguration"]
    assert routing == {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 300}


@pytest.mark.parametrize(
    ("traffic", "step"), [("canary", "CanarySize"), ("linear", "LinearStepSize")]
)
def test_two_machines_hand_over_one_by_one(synthesize: Synthesize, traffic: str, step: str) -> None:
    template = synthesize(endpoint="realtime", endpoint_instances=2, endpoint_traffic=traffic)
    assert rollout(template)["TrafficRoutingConfiguration"] == {
        "Type": traffic.upper(),
        step: {"Type": "INSTANCE_COUNT", "Value": 1},
        "WaitIntervalInSeconds": 300,
    }


def test_the_longest_rollout_has_the_time_it_needs(realtime: Template) -> None:
    """Eight machines, the most there can be, one after the other."""
    policy = rollout(realtime)
    waits = 8 * policy["TrafficRoutingConfiguration"]["WaitIntervalInSeconds"]
    needed = waits + policy["TerminationWaitInSeconds"]
    assert needed + 1200 <= policy["MaximumExecutionTimeoutInSeconds"]


# More machines under load.


def test_machines_are_added_as_calls_come(realtime: Template) -> None:
    target = realtime.only("AWS::ApplicationAutoScaling::ScalableTarget")
    (endpoint,) = (
        name for name, r in realtime.resources.items() if r["Type"] == "AWS::SageMaker::Endpoint"
    )
    assert {name: target[name] for name in target if name != "Tags"} == {
        "ServiceNamespace": "sagemaker",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
        "ResourceId": f"endpoint/<{endpoint}.EndpointName>/variant/AllTraffic",
        "MinCapacity": 2,
        "MaxCapacity": 4,
    }
    policy = realtime.only("AWS::ApplicationAutoScaling::ScalingPolicy")
    assert policy["PolicyType"] == "TargetTrackingScaling"
    tracking = policy["TargetTrackingScalingPolicyConfiguration"]
    assert tracking["TargetValue"] == 705
    metric = tracking["PredefinedMetricSpecification"]["PredefinedMetricType"]
    assert metric == "SageMakerVariantInvocationsPerInstance"


@pytest.mark.parametrize(
    ("instance_type", "calls"),
    [("ml.m5.large", 705), ("ml.c5.xlarge", 1410), ("ml.m5.4xlarge", 5640), ("ml.t2.medium", 705)],
)
def test_a_larger_machine_is_given_more_calls(instance_type: str, calls: int) -> None:
    assert calls_per_minute(instance_type) == calls


def test_a_deploy_leaves_the_number_of_machines_alone(realtime: Template) -> None:
    assert realtime.only("AWS::SageMaker::Endpoint")["RetainAllVariantProperties"] is True


def test_a_fixed_number_of_machines_is_the_template_s(synthesize: Synthesize) -> None:
    template = synthesize(endpoint="realtime", endpoint_instances=2, endpoint_max_instances=2)
    assert template.of_type("AWS::ApplicationAutoScaling::ScalableTarget") == []
    assert "RetainAllVariantProperties" not in template.only("AWS::SageMaker::Endpoint")


# A share of the calls is kept.


def test_a_share_of_photos_and_answers_is_kept_in_the_bucket(realtime: Template) -> None:
    capture = realtime.only("AWS::SageMaker::EndpointConfig")["DataCaptureConfig"]
    assert capture["EnableCapture"] is True
    assert capture["InitialSamplingPercentage"] == 10
    assert capture["CaptureOptions"] == [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}]
    assert capture["DestinationS3Uri"].endswith("/captured")
    assert capture["CaptureContentTypeHeader"]["JsonContentTypes"] == ["application/json"]
    put = realtime.statements("ExecutionRole")["Capture"]
    assert put["Action"] == "s3:PutObject"
    assert put["Resource"].endswith(f">/captured/{REALTIME}/*")


def test_nothing_is_kept_and_nothing_may_be_written_at_zero(synthesize: Synthesize) -> None:
    template = synthesize(endpoint="realtime", endpoint_capture_percentage=0)
    assert "DataCaptureConfig" not in template.only("AWS::SageMaker::EndpointConfig")
    assert "s3:PutObject" not in str(template.statements("ExecutionRole"))


# A customer key.


@pytest.mark.parametrize("kind", ["serverless", "realtime"])
def test_a_customer_key_encrypts_what_the_endpoint_keeps(synthesize: Synthesize, kind: str) -> None:
    template = synthesize(endpoint=kind, kms="customer")
    configuration = template.only("AWS::SageMaker::EndpointConfig")
    key = configuration["KmsKeyId"]
    assert key.startswith("<Given:ExportsOutputFnGetAttKey")
    if kind == "realtime":
        assert configuration["DataCaptureConfig"]["KmsKeyId"] == key
    statements = template.statements("ExecutionRole")
    assert statements["UseKey"]["Resource"] == statements["LendKey"]["Resource"] == key
    assert statements["LendKey"]["Action"] == "kms:CreateGrant"
    assert statements["LendKey"]["Condition"] == {"Bool": {"kms:GrantIsForAWSResource": "true"}}


@pytest.mark.parametrize(
    "instance_type",
    ["ml.g4dn.xlarge", "ml.g5.xlarge", "ml.g6e.xlarge", "ml.m5d.large", "ml.p4de.24xlarge"],
)
def test_a_disk_that_encrypts_itself_gets_no_key(
    synthesize: Synthesize, instance_type: str
) -> None:
    template = synthesize(endpoint="realtime", kms="customer", endpoint_instance_type=instance_type)
    configuration = template.only("AWS::SageMaker::EndpointConfig")
    assert "KmsKeyId" not in configuration
    assert "KmsKeyId" in configuration["DataCaptureConfig"]


@pytest.mark.parametrize("instance_type", ["ml.m5.large", "ml.c6i.xlarge", "ml.inf2.xlarge"])
def test_any_other_disk_gets_the_key(synthesize: Synthesize, instance_type: str) -> None:
    template = synthesize(endpoint="realtime", kms="customer", endpoint_instance_type=instance_type)
    assert "KmsKeyId" in template.only("AWS::SageMaker::EndpointConfig")


def test_without_a_customer_key_none_is_named(synthesize: Synthesize) -> None:
    template = synthesize(endpoint="realtime")
    assert "KmsKeyId" not in str(template.raw)
    assert "kms:" not in str(template.statements("ExecutionRole"))


# One deploy after another, as CloudFormation does it.


@pytest.mark.parametrize("kind", ["serverless", "realtime"])
def test_a_changed_model_replaces_model_and_configuration_under_the_same_endpoint(
    synthesize: Synthesize, kind: str
) -> None:
    template, stack = synthesize(endpoint=kind).raw, DeployedStack()
    stack.deploy(template, ModelUri="s3://ours/runs/1/model.tar.gz")
    endpoint = stack.only("SageMaker::Endpoint")
    stack.deploy(template, ModelUri="s3://ours/runs/2/model.tar.gz")

    changed = stack.only("SageMaker::Endpoint")
    assert changed["EndpointName"] == endpoint["EndpointName"]
    assert changed["EndpointConfigName"] != endpoint["EndpointConfigName"]
    configuration = stack.resources["AWS::SageMaker::EndpointConfig", changed["EndpointConfigName"]]
    (variant,) = configuration["ProductionVariants"]
    model = stack.resources["AWS::SageMaker::Model", variant["ModelName"]]
    assert model["PrimaryContainer"]["ModelDataUrl"] == "s3://ours/runs/2/model.tar.gz"
    for type in ("Model", "EndpointConfig", "Endpoint"):
        stack.only(f"SageMaker::{type}")  # nothing of the first deploy is left


def test_the_same_model_again_changes_nothing(synthesize: Synthesize) -> None:
    template, stack = synthesize(endpoint="realtime").raw, DeployedStack()
    stack.deploy(template, ModelUri="s3://ours/runs/1/model.tar.gz")
    before = dict(stack.resources)
    stack.deploy(template, ModelUri="s3://ours/runs/1/model.tar.gz")
    assert stack.resources == before


def test_from_each_kind_to_the_other_and_back_leaves_one_endpoint(synthesize: Synthesize) -> None:
    stack = DeployedStack()
    names = []
    for kind in ("serverless", "realtime", "serverless", "realtime"):
        stack.deploy(synthesize(endpoint=kind).raw, ModelUri="s3://ours/runs/1/model.tar.gz")
        names.append(stack.only("SageMaker::Endpoint")["EndpointName"])
        scaled = [name for type, name in stack.resources if type.endswith("ScalableTarget")]
        assert len(scaled) == (kind == "realtime")
    assert names == ["bin-counter-serverless", "bin-counter-realtime-m5-large"] * 2


def test_each_kind_is_an_endpoint_of_its_own(template: Template, realtime: Template) -> None:
    ids = [
        {name for name, r in t.resources.items() if r["Type"] == "AWS::SageMaker::Endpoint"}
        for t in (template, realtime)
    ]
    assert ids[0].isdisjoint(ids[1])


def test_an_endpoint_that_scales_can_get_another_type_of_machine(synthesize: Synthesize) -> None:
    stack = DeployedStack()
    for instance_type in ("ml.m5.large", "ml.c5.xlarge", "ml.m5.large"):
        template = synthesize(endpoint="realtime", endpoint_instance_type=instance_type)
        stack.deploy(template.raw, ModelUri="s3://ours/runs/1/model.tar.gz")
        endpoint = stack.only("SageMaker::Endpoint")["EndpointName"]
        target = stack.only("ApplicationAutoScaling::ScalableTarget")
        assert target["ResourceId"] == f"endpoint/{endpoint}/variant/AllTraffic"
    assert endpoint == "bin-counter-realtime-m5-large"


# The image, and the role.


def test_without_an_image_one_is_built_from_the_serving_folder(template: Template) -> None:
    (assets,) = template.path.parent.glob("EndpointStack.assets.json")
    image = template.only("AWS::SageMaker::Model")["PrimaryContainer"]["Image"]
    assert "container-assets" in image
    assert '"platform": "linux/amd64"' in assets.read_text()
    assert '"type=docker,oci-mediatypes=false"' in assets.read_text(), (
        "SageMaker refuses OCI manifests"
    )
    (context,) = template.path.parent.glob("asset.*/Dockerfile")
    assert (context.parent / "preprocess.py").exists()
    assert not (context.parent / "models.py").exists(), "it needs more than the image has"


def test_a_given_image_is_taken(realtime: Template) -> None:
    image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/bins:1.0"
    assert realtime.only("AWS::SageMaker::Model")["PrimaryContainer"]["Image"] == image
    pull = realtime.statements("ExecutionRole")["PullImage"]
    assert pull["Resource"] == "arn:aws:ecr:eu-west-1:123456789012:repository/team/bins"


def test_what_sagemaker_may_do_for_the_endpoint(template: Template) -> None:
    statements = template.statements("ExecutionRole")
    assert {sid: (s["Action"], s["Resource"]) for sid, s in statements.items()} == {
        "ReadModel": (
            "s3:GetObject",
            "<bin-counter-DataStack:ExportsOutputFnGetAttDataBucketE6B0FAA8Arn3FF3A9FF>/runs/*/model.tar.gz",
        ),
        "PullImage": (
            ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            statements["PullImage"]["Resource"],
        ),
        "LogIn": ("ecr:GetAuthorizationToken", "*"),
        "Log": (
            [
                "logs:CreateLogGroup",
                "logs:CreateLogStream",
                "logs:DescribeLogStreams",
                "logs:PutLogEvents",
            ],
            "arn:<AWS::Partition>:logs:<AWS::Region>:<AWS::AccountId>"
            ":log-group:/aws/sagemaker/Endpoints/bin-counter-serverless:*",
        ),
        "Measure": ("cloudwatch:PutMetricData", "*"),
    }
    assert statements["Measure"]["Condition"] == {
        "StringEquals": {"cloudwatch:namespace": "/aws/sagemaker/Endpoints"}
    }
    assert "container-assets" in str(statements["PullImage"]["Resource"])


def test_only_sagemaker_of_this_account_takes_the_role(template: Template) -> None:
    (trust,) = template.only("AWS::IAM::Role")["AssumeRolePolicyDocument"]["Statement"]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": "<AWS::AccountId>"}}
