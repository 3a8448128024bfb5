"""EndpointStack: a model behind a SageMaker endpoint."""

from aws_cdk import (
    CfnOutput,
    CfnParameter,
    CfnRule,
    CfnRuleAssertion,
    Fn,
    Stack,
)
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from constructs import Construct

from common.files import ROOT
from common.names import model_parameter, stack_name
from common.run_record import MODEL
from infra.acknowledge import acknowledge_objects
from infra.config import Config
from infra.endpoint_alarms import rollback_alarms
from infra.model_endpoint import CAPTURED, ModelEndpoint, captures, endpoint_name
from infra.sagemaker_container import acknowledge_container, run_container, sagemaker
from infra.statements import allow, on_objects, use_key
from infra.train_stack import NO_MODEL

MODELS = f"runs/*/{MODEL}"
SERVING = ROOT / "serving" / "container"


class EndpointStack(Stack):
    """The endpoint of the model that the model parameter names at the time of the deploy."""

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        config: Config,
        bucket: s3.IBucket,
        alerts: sns.ITopic,
        key: kms.IKey | None = None,
    ) -> None:
        super().__init__(
            scope,
            id,
            stack_name=stack_name(config.name, id),
            description="Bin counter: the model behind an endpoint",
        )
        model_uri = CfnParameter(
            self,
            "ModelUri",
            type="AWS::SSM::Parameter::Value<String>",
            default=model_parameter(config.name),
            description="SSM parameter that holds the URI of the model",
        ).value_as_string
        CfnRule(
            self,
            "ModelExists",
            assertions=[
                CfnRuleAssertion(
                    assert_=Fn.condition_not(Fn.condition_equals(model_uri, NO_MODEL)),
                    assert_description="no model yet: run python -m training.launch first",
                )
            ],
        )
        image_uri, repository_arn = self._image(config.serving_image)
        endpoint = ModelEndpoint(
            self,
            "Endpoint",
            config=config,
            image_uri=image_uri,
            model_uri=model_uri,
            role=self._execution_role(config, bucket, repository_arn, key),
            bucket=bucket,
            alerts=alerts,
            key=key,
        ).endpoint
        CfnOutput(self, "EndpointName", value=endpoint.attr_endpoint_name)

    def _image(self, uri: str | None) -> tuple[str, str]:
        """URI and repository ARN of the image: the one at `uri`, or one that Docker builds."""
        if uri:
            return uri, _repository_arn(uri)
        asset = ecr_assets.DockerImageAsset(
            self,
            "Image",
            directory=str(SERVING),
            platform=ecr_assets.Platform.LINUX_AMD64,
            # SageMaker refuses OCI manifests (github.com/aws/amazon-sagemaker-feedback/issues/180),
            # the default of type=docker since Docker 29.6, and of some builders before.
            outputs=["type=docker,oci-mediatypes=false"],
        )
        return asset.image_uri, asset.repository.repository_arn

    def _execution_role(
        self, config: Config, bucket: s3.IBucket, repository_arn: str, key: kms.IKey | None
    ) -> iam.Role:
        """What SageMaker needs to create and run the endpoint, and nothing else.

        The policy is inline, so that it exists when SageMaker tests the role for a new model.
        """
        name = endpoint_name(config)
        namespace = "/aws/sagemaker/Endpoints"
        log_group = f"{namespace}/{name}"
        statements = [
            on_objects("ReadModel", "s3:GetObject", bucket, [MODELS]),
            *run_container(self, repository_arn, namespace, log_group),
        ]
        if config.endpoint == "realtime":
            alarms = f"arn:{self.partition}:cloudwatch:{self.region}:{self.account}:alarm"
            watched = [f"{alarms}:{alarm}" for alarm in rollback_alarms(name)]
            statements.append(allow("WatchRollout", ["cloudwatch:DescribeAlarms"], watched))
        captured = [f"{CAPTURED}/{name}/*"] if captures(config) else []
        if captured:
            statements.append(on_objects("Capture", "s3:PutObject", bucket, captured))
        if key:
            # For the disks of the endpoint's machines, or the image of a serverless one.
            grants = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
            lend = allow("LendKey", ["kms:CreateGrant"], [key.key_arn], grants)
            statements += [use_key(key, ["s3"]), lend]
        role = iam.Role(
            self,
            "ExecutionRole",
            assumed_by=sagemaker(self),
            inline_policies={"Endpoint": iam.PolicyDocument(statements=statements)},
        )
        acknowledge_objects(role, bucket, [MODELS], "The run's id is not known before it starts.")
        acknowledge_objects(role, bucket, captured, "SageMaker names captured calls by date.")
        acknowledge_container(role, log_group)
        return role


def _repository_arn(image_uri: str) -> str:
    """ARN of the ECR repository of an image, from the image's URI."""
    registry, path = image_uri.split("/", 1)
    account, _, _, region, domain = registry.split(".", 4)
    partition = "aws-cn" if domain.endswith(".cn") else "aws"
    name = path.split("@")[0].split(":")[0]
    return f"arn:{partition}:ecr:{region}:{account}:repository/{name}"
