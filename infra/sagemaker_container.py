"""What the role of any container on SageMaker needs: an image, a log and metrics."""

from aws_cdk import Stack
from aws_cdk import aws_iam as iam

from infra.acknowledge import INLINE, acknowledge
from infra.statements import allow


def sagemaker(stack: Stack) -> iam.ServicePrincipal:
    """SageMaker, acting for this account alone."""
    only = {"StringEquals": {"aws:SourceAccount": stack.account}}
    return iam.ServicePrincipal("sagemaker.amazonaws.com", conditions=only)


def run_container(
    stack: Stack, repository_arn: str, namespace: str, log_group: str
) -> list[iam.PolicyStatement]:
    """Allow to pull from an ECR repository, to log and to write metrics of `namespace`."""
    pull = ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]
    log = [
        "logs:CreateLogGroup",
        "logs:CreateLogStream",
        "logs:DescribeLogStreams",
        "logs:PutLogEvents",
    ]
    group = f"arn:{stack.partition}:logs:{stack.region}:{stack.account}:log-group:{log_group}:*"
    only = {"StringEquals": {"cloudwatch:namespace": namespace}}
    return [
        allow("LogIn", ["ecr:GetAuthorizationToken"], ["*"]),
        allow("PullImage", pull, [repository_arn]),
        allow("Log", log, [group]),
        allow("Measure", ["cloudwatch:PutMetricData"], ["*"], only),
    ]


def acknowledge_container(role: iam.Role, log_group: str) -> None:
    """Accept the wildcards of `run_container`, and that the policy is inline."""
    logs = "arn:<AWS::Partition>:logs:<AWS::Region>:<AWS::AccountId>:log-group"
    acknowledge(role, f"IAM5[Resource::{logs}:{log_group}:*]", "SageMaker names the log streams.")
    acknowledge(
        role, "IAM5[Resource::*]", "Login to ECR and PutMetricData cannot be limited to a resource."
    )
    acknowledge(role, "IAMNoInlinePolicy", INLINE)
