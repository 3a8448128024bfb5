"""A model behind a SageMaker endpoint: serverless, or on machines that are always up."""

import re

from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sagemaker as sagemaker
from aws_cdk import aws_sns as sns
from constructs import Construct

from infra.acknowledge import AWS_KEY, acknowledge
from infra.config import Config
from infra.endpoint_alarms import EndpointAlarms, rollback_alarms
from infra.endpoint_scaling import EndpointScaling

VARIANT = "AllTraffic"
CAPTURED = "captured"  # prefix in the data bucket of the calls that are kept
# Families with an instance store, which refuse a key: their hardware encrypts it with its own
# (SageMaker's API reference, CreateEndpointConfig, KmsKeyId). A "d" after the generation says
# "instance store"; the others have one without saying so.
INSTANCE_STORE = re.compile(r"ml\.([a-z]+\d+[a-z]*d[a-z]*|g[5-9]e?|gr6|p5[a-z]*|trn\d[a-z]*)\.")

# The old machines stay this long beside the new ones, twice: while alarms are watched, and after.
# It is more than the alarms need, and costs cents.
WATCH_SECONDS = 300
# Above 8 steps of a linear shift, and the start of the machines.
LONGEST_DEPLOYMENT_SECONDS = 5400
TRAFFIC = {"all_at_once": "ALL_AT_ONCE", "canary": "CANARY", "linear": "LINEAR"}


def endpoint_name(config: Config) -> str:
    """Name of the endpoint, another one wherever SageMaker refuses a change in place.

    A real-time endpoint cannot become serverless, and one that scales cannot change its type.
    """
    if config.endpoint == "serverless":
        return f"{config.name}-serverless"
    machine = config.endpoint_instance_type.removeprefix("ml.").replace(".", "-")
    return f"{config.name}-realtime-{machine}"


class ModelEndpoint(Construct):
    """Model, endpoint configuration and endpoint; for a real-time one alarms and scaling as well.

    A changed model or configuration is replaced, so neither has a name.

    A serverless endpoint has no alarms, which cost more than it does: it costs nothing while idle,
    cannot be rolled back, and its caller sees its errors.
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
        bucket: s3.IBucket,
        alerts: sns.ITopic,
        key: kms.IKey | None = None,
    ) -> None:
        super().__init__(scope, id)
        realtime = config.endpoint == "realtime"
        scales = realtime and config.endpoint_max_instances > config.endpoint_instances
        model = sagemaker.CfnModel(
            self,
            "Model",
            execution_role_arn=role.role_arn,
            primary_container=sagemaker.CfnModel.ContainerDefinitionProperty(
                image=image_uri, model_data_url=model_uri
            ),
            enable_network_isolation=True if realtime else None,
        )
        if not realtime:
            acknowledge(model, "CKV_AWS_370", "Serverless endpoints know no network isolation.")
        takes_key = not (realtime and INSTANCE_STORE.match(config.endpoint_instance_type))
        configuration = sagemaker.CfnEndpointConfig(
            self,
            "Configuration",
            production_variants=[_variant(config, model.attr_model_name)],
            data_capture_config=_capture(config, bucket, key) if captures(config) else None,
            kms_key_id=key.key_arn if key and takes_key else None,
        )
        if not (key and takes_key):
            acknowledge(
                configuration,
                "SageMakerEndpointConfigurationKMSKeyConfigured",
                AWS_KEY if takes_key else "SageMaker refuses a key where disks encrypt themselves.",
            )
        self.endpoint = sagemaker.CfnEndpoint(
            self,
            config.endpoint.capitalize(),
            endpoint_name=endpoint_name(config),
            endpoint_config_name=configuration.attr_endpoint_config_name,
            deployment_config=_deployment(config) if realtime else None,
            # Else each deploy would set a busy endpoint back to the least number of machines.
            retain_all_variant_properties=True if scales else None,
        )
        if realtime:
            alarms = EndpointAlarms(
                self, "Alarms", endpoint=endpoint_name(config), variant=VARIANT, alerts=alerts
            )
            self.endpoint.node.add_dependency(alarms)
        if scales:
            EndpointScaling(
                self,
                "Scaling",
                endpoint=self.endpoint,
                variant=VARIANT,
                instance_type=config.endpoint_instance_type,
                least=config.endpoint_instances,
                most=config.endpoint_max_instances,
            )


def captures(config: Config) -> bool:
    """Whether a share of the calls is kept in the bucket; serverless endpoints cannot."""
    return config.endpoint == "realtime" and config.endpoint_capture_percentage > 0


def _variant(
    config: Config, model_name: str
) -> sagemaker.CfnEndpointConfig.ProductionVariantProperty:
    if config.endpoint == "realtime":
        return sagemaker.CfnEndpointConfig.ProductionVariantProperty(
            variant_name=VARIANT,
            model_name=model_name,
            initial_variant_weight=1,
            initial_instance_count=config.endpoint_instances,
            instance_type=config.endpoint_instance_type,
        )
    return sagemaker.CfnEndpointConfig.ProductionVariantProperty(
        variant_name=VARIANT,
        model_name=model_name,
        initial_variant_weight=1,
        serverless_config=sagemaker.CfnEndpointConfig.ServerlessConfigProperty(
            max_concurrency=config.endpoint_max_concurrency,
            memory_size_in_mb=config.endpoint_memory_mb,
        ),
    )


def _capture(
    config: Config, bucket: s3.IBucket, key: kms.IKey | None
) -> sagemaker.CfnEndpointConfig.DataCaptureConfigProperty:
    """Photos and answers, under captured/<endpoint>/<variant>/<year>/<month>/<day>/<hour>/."""
    configuration = sagemaker.CfnEndpointConfig
    return configuration.DataCaptureConfigProperty(
        enable_capture=True,
        capture_options=[
            configuration.CaptureOptionProperty(capture_mode=mode) for mode in ("Input", "Output")
        ],
        initial_sampling_percentage=config.endpoint_capture_percentage,
        destination_s3_uri=f"s3://{bucket.bucket_name}/{CAPTURED}",
        kms_key_id=key.key_arn if key else None,
        # Answers are kept as text. Photos are none of these types, and are kept in base64.
        capture_content_type_header=configuration.CaptureContentTypeHeaderProperty(
            json_content_types=["application/json"], csv_content_types=["text/csv"]
        ),
    )


def _deployment(config: Config) -> sagemaker.CfnEndpoint.DeploymentConfigProperty:
    """New machines beside the old ones; the old ones stay if an alarm rings.

    Canary and linear shift machine by machine: SageMaker allows a step of at most half of them.
    """
    endpoint = sagemaker.CfnEndpoint
    one = endpoint.CapacitySizeProperty(type="INSTANCE_COUNT", value=1)
    return endpoint.DeploymentConfigProperty(
        blue_green_update_policy=endpoint.BlueGreenUpdatePolicyProperty(
            traffic_routing_configuration=endpoint.TrafficRoutingConfigProperty(
                type=TRAFFIC[config.endpoint_traffic],
                canary_size=one if config.endpoint_traffic == "canary" else None,
                linear_step_size=one if config.endpoint_traffic == "linear" else None,
                wait_interval_in_seconds=WATCH_SECONDS,
            ),
            termination_wait_in_seconds=WATCH_SECONDS,
            maximum_execution_timeout_in_seconds=LONGEST_DEPLOYMENT_SECONDS,
        ),
        auto_rollback_configuration=endpoint.AutoRollbackConfigProperty(
            alarms=[
                endpoint.AlarmProperty(alarm_name=name)
                for name in rollback_alarms(endpoint_name(config))
            ]
        ),
    )
