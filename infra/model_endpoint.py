"""A model behind a SageMaker endpoint, either serverless or on machines that are always up."""

import re
from typing import Any

from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sagemaker as sagemaker
from aws_cdk import aws_sns as sns
from constructs import Construct

from infra.acknowledge import AWS_KEY, acknowledge
from infra.config import Config
from infra.endpoint_alarms import VARIANT, EndpointAlarms, rollback_alarms
from infra.endpoint_scaling import EndpointScaling

CAPTURED = "captured"  # prefix of captured calls in the data bucket
# Families with an instance store, which is encrypted by the hardware and does not accept a key
# (SageMaker's API reference, CreateEndpointConfig, KmsKeyId). A "d" after the generation means
# "instance store"; the other families listed here have one as well.
INSTANCE_STORE = re.compile(r"ml\.([a-z]+\d+[a-z]*d[a-z]*|g[5-9]e?|gr6|p5[a-z]*|trn\d[a-z]*)\.")

# The old machines stay beside the new ones twice as long as this: while the alarms are watched, and
# again afterwards. It is longer than the alarms need, and costs cents.
WATCH_SECONDS = 300
# Longer than 8 steps of a linear shift and the start of the machines.
LONGEST_DEPLOYMENT_SECONDS = 5400
TRAFFIC = {"all_at_once": "ALL_AT_ONCE", "canary": "CANARY", "linear": "LINEAR"}


def endpoint_name(config: Config) -> str:
    """Name of the endpoint, which differs where SageMaker refuses an update in place.

    A real-time endpoint cannot become serverless, and one that scales cannot change its type.
    """
    if config.endpoint == "serverless":
        return f"{config.name}-serverless"
    machine = config.endpoint_instance_type.removeprefix("ml.").replace(".", "-")
    return f"{config.name}-realtime-{machine}"


class ModelEndpoint(Construct):
    """Model, endpoint configuration and endpoint; for a real-time one, also alarms and scaling.

    Model and configuration have no fixed name, as changing them replaces them.

    A serverless endpoint has no alarms, which would cost more than the endpoint: it is free while
    idle, cannot be rolled back, and callers see its errors.
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
            acknowledge(
                model, "CKV_AWS_370", "Serverless endpoints do not support network isolation."
            )
        configuration = self._configuration(config, model.attr_model_name, bucket, key)
        self.endpoint = sagemaker.CfnEndpoint(
            self,
            config.endpoint.capitalize(),
            endpoint_name=endpoint_name(config),
            endpoint_config_name=configuration.attr_endpoint_config_name,
            deployment_config=_deployment(config) if realtime else None,
            # Otherwise each deploy would reset a busy endpoint to the minimum number of machines.
            retain_all_variant_properties=True if scales else None,
        )
        if realtime:
            alarms = EndpointAlarms(self, "Alarms", endpoint=endpoint_name(config), alerts=alerts)
            self.endpoint.node.add_dependency(alarms)
        if scales:
            EndpointScaling(self, "Scaling", endpoint=self.endpoint, config=config)

    def _configuration(
        self, config: Config, model_name: str, bucket: s3.IBucket, key: kms.IKey | None
    ) -> sagemaker.CfnEndpointConfig:
        own_key = config.endpoint == "realtime" and INSTANCE_STORE.match(
            config.endpoint_instance_type
        )
        configuration = sagemaker.CfnEndpointConfig(
            self,
            "Configuration",
            production_variants=[_variant(config, model_name)],
            data_capture_config=_capture(config, bucket, key) if captures(config) else None,
            kms_key_id=key.key_arn if key and not own_key else None,
        )
        if own_key or not key:
            refused = "SageMaker refuses a key for disks that encrypt themselves."
            finding = "SageMakerEndpointConfigurationKMSKeyConfigured"
            acknowledge(configuration, finding, refused if own_key else AWS_KEY)
        return configuration


def captures(config: Config) -> bool:
    """Whether a share of the calls is stored in the bucket; serverless endpoints cannot do that."""
    return config.endpoint == "realtime" and config.endpoint_capture_percentage > 0


def _variant(
    config: Config, model_name: str
) -> sagemaker.CfnEndpointConfig.ProductionVariantProperty:
    configuration = sagemaker.CfnEndpointConfig
    if config.endpoint == "realtime":
        capacity: dict[str, Any] = {
            "initial_instance_count": config.endpoint_instances,
            "instance_type": config.endpoint_instance_type,
        }
    else:
        serverless = configuration.ServerlessConfigProperty(
            max_concurrency=config.endpoint_max_concurrency,
            memory_size_in_mb=config.endpoint_memory_mb,
        )
        capacity = {"serverless_config": serverless}
    return configuration.ProductionVariantProperty(
        variant_name=VARIANT, model_name=model_name, initial_variant_weight=1, **capacity
    )


def _capture(
    config: Config, bucket: s3.IBucket, key: kms.IKey | None
) -> sagemaker.CfnEndpointConfig.DataCaptureConfigProperty:
    """Store photos and answers in captured/<endpoint>/<variant>/<year>/<month>/<day>/<hour>/."""
    configuration = sagemaker.CfnEndpointConfig
    return configuration.DataCaptureConfigProperty(
        enable_capture=True,
        capture_options=[
            configuration.CaptureOptionProperty(capture_mode=mode) for mode in ("Input", "Output")
        ],
        initial_sampling_percentage=config.endpoint_capture_percentage,
        destination_s3_uri=f"s3://{bucket.bucket_name}/{CAPTURED}",
        kms_key_id=key.key_arn if key else None,
        # Answers are stored as text; photos, which have other types, in base64.
        capture_content_type_header=configuration.CaptureContentTypeHeaderProperty(
            json_content_types=["application/json"], csv_content_types=["text/csv"]
        ),
    )


def _deployment(config: Config) -> sagemaker.CfnEndpoint.DeploymentConfigProperty:
    """Start new machines beside the old ones, which stay in use if an alarm fires.

    Canary and linear shift one machine at a time, as SageMaker limits a step to half of them.
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
