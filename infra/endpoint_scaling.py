"""Scaling of a real-time endpoint by the number of calls."""

from aws_cdk import aws_applicationautoscaling as scaling
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from infra.config import Config
from infra.endpoint_alarms import VARIANT

# ResNet50 in ONNX Runtime: 47 photos/s on two cores (measured in November 2026). A vCPU is half a
# core; half of the rate is headroom until the next machine has started.
CALLS_PER_SECOND_AND_VCPU = 47 / 2 / 2 * 0.5


class EndpointScaling(Construct):
    """Target tracking on the calls that each machine receives in a minute.

    Application Auto Scaling uses its service-linked role, which it creates with the first target.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        endpoint: sagemaker.CfnEndpoint,
        config: Config,
    ) -> None:
        super().__init__(scope, id)
        dimension = "sagemaker:variant:DesiredInstanceCount"
        target = scaling.CfnScalableTarget(
            self,
            "Target",
            service_namespace="sagemaker",
            scalable_dimension=dimension,
            # By the endpoint's attribute: registering fails until the endpoint is in service.
            resource_id=f"endpoint/{endpoint.attr_endpoint_name}/variant/{VARIANT}",
            min_capacity=config.endpoint_instances,
            max_capacity=config.endpoint_max_instances,
        )
        scaling.CfnScalingPolicy(
            self,
            "Calls",
            policy_name="calls-per-machine",
            policy_type="TargetTrackingScaling",
            scaling_target_id=target.ref,
            target_tracking_scaling_policy_configuration=(
                scaling.CfnScalingPolicy.TargetTrackingScalingPolicyConfigurationProperty(
                    target_value=calls_per_minute(config.endpoint_instance_type),
                    predefined_metric_specification=(
                        scaling.CfnScalingPolicy.PredefinedMetricSpecificationProperty(
                            predefined_metric_type="SageMakerVariantInvocationsPerInstance"
                        )
                    ),
                )
            ),
        )


def calls_per_minute(instance_type: str) -> int:
    """Target of one machine, such as `ml.m5.large`, in photos a minute."""
    size = instance_type.rsplit(".", 1)[1]
    times, xlarge, _ = size.partition("xlarge")
    vcpus = 4 * int(times or 1) if xlarge else 2  # "12xlarge" has 12 times 4
    return round(vcpus * CALLS_PER_SECOND_AND_VCPU * 60)
