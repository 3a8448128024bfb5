from typing import Any

import pytest
from synthesized import Template

from infra.train_stack import MODEL_PARAMETER, NO_MODEL


@pytest.fixture
def template(stacks: dict[str, Template]) -> Template:
    return stacks["EndpointStack"]


@pytest.fixture
def realtime(other_stacks: dict[str, Template]) -> Template:
    return other_stacks["EndpointStack"]


def variant(template: Template) -> dict[str, Any]:
    (variant,) = template.only("AWS::SageMaker::EndpointConfig")["ProductionVariants"]
    return dict(variant)


def test_its_one_output_is_the_endpoint_name(template: Template) -> None:
    assert list(template.raw["Outputs"]) == ["EndpointName"]


def test_the_model_is_the_one_the_parameter_points_at(template: Template) -> None:
    parameter = template.raw["Parameters"]["ModelUri"]
    assert parameter["Type"] == "AWS::SSM::Parameter::Value<String>"
    assert parameter["Default"] == MODEL_PARAMETER
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


def test_realtime_is_one_machine_without_a_way_out(realtime: Template) -> None:
    assert variant(realtime)["InstanceType"] == "ml.m5.large"
    assert variant(realtime)["InitialInstanceCount"] == 1
    assert "ServerlessConfig" not in variant(realtime)
    assert realtime.only("AWS::SageMaker::Model")["EnableNetworkIsolation"] is True


def test_a_realtime_endpoint_is_another_one(template: Template, realtime: Template) -> None:
    assert realtime.only("AWS::SageMaker::Endpoint")["EndpointName"] == "bin-counter-realtime"
    ids = [
        {name for name, r in t.resources.items() if r["Type"] == "AWS::SageMaker::Endpoint"}
        for t in (template, realtime)
    ]
    assert ids[0].isdisjoint(ids[1])


def test_without_an_image_one_is_built_from_the_serving_folder(template: Template) -> None:
    (assets,) = template.path.parent.glob("EndpointStack.assets.json")
    image = template.only("AWS::SageMaker::Model")["PrimaryContainer"]["Image"]
    assert "container-assets" in image
    assert '"platform": "linux/amd64"' in assets.read_text()
    (context,) = template.path.parent.glob("asset.*/Dockerfile")
    assert (context.parent / "preprocess.py").exists()


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
            "<DataStack:ExportsOutputFnGetAttDataBucketE6B0FAA8Arn3FF3A9FF>/runs/*/model.tar.gz",
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
