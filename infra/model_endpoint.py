"""A model behind a SageMaker endpoint: serverless, or on a machine that is always up."""

from aws_cdk import aws_iam as iam
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from infra.config import Config

REALTIME_INSTANCE_TYPE = "ml.m5.large"


def endpoint_name(config: Config) -> str:
    """Name of the endpoint. A real-time one cannot become serverless in place: two names."""
    return f"bin-counter-{config.endpoint}"


class ModelEndpoint(Construct):
    """Model, endpoint configuration and endpoint.

    A changed model or configuration is replaced, so neither has a name.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        config: Config,
        image_uri: str,
        model_uri: str,
        role: iam.Role,
    ) -> None:
        super().__init__(scope, id)
        realtime = config.endpoint == "realtime"
        model = sagemaker.CfnModel(
            self,
            "Model",
            execution_role_arn=role.role_arn,
            primary_container=sagemaker.CfnModel.ContainerDefinitionProperty(
                image=image_uri, model_data_url=model_uri
            ),
            # Serverless endpoints know no network isolation.
            enable_network_isolation=True if realtime else None,
        )

        if realtime:
            variant = sagemaker.CfnEndpointConfig.ProductionVariantProperty(
                variant_name="AllTraffic",
                model_name=model.attr_model_name,
                initial_variant_weight=1,
                initial_instance_count=1,
                instance_type=REALTIME_INSTANCE_TYPE,
            )
        else:
            variant = sagemaker.CfnEndpointConfig.ProductionVariantProperty(
                variant_name="AllTraffic",
                model_name=model.attr_model_name,
                initial_variant_weight=1,
                serverless_config=sagemaker.CfnEndpointConfig.ServerlessConfigProperty(
                    max_concurrency=config.endpoint_max_concurrency,
                    memory_size_in_mb=config.endpoint_memory_mb,
                ),
            )
        configuration = sagemaker.CfnEndpointConfig(
            self, "Configuration", production_variants=[variant]
        )
        self.endpoint = sagemaker.CfnEndpoint(
            self,
            config.endpoint.capitalize(),
            endpoint_name=endpoint_name(config),
            endpoint_config_name=configuration.attr_endpoint_config_name,
        )
