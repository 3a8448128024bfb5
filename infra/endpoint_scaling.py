"""More machines behind a real-time endpoint while it gets more calls than one can answer."""

from aws_cdk import aws_applicationautoscaling as scaling
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

# ResNet50 in ONNX Runtime: 47 photos/s on two cores (measured, November 2026). A vCPU is half a
# core of such a machine; half of the rate is headroom while the next machine starts.
CALLS_PER_SECOND_AND_VCPU = 47 / 2 / 2 * 0.5


class EndpointScaling(Construct):
    """Target tracking on the calls a minute that each machine gets.

    Application Auto Scaling acts by its service-linked role, which it makes with the first target.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        endpoint: sagemaker.CfnEndpoint,
        variant: str,
        instance_type: str,
        least: int,
        most: int,
    ) -> None:
        super().__init__(scope, id)
        dimension = "sagemaker:variant:DesiredInstanceCount"
        target = scaling.CfnScalableTarget(
            self,
            "Target",
            service_namespace="sagemaker",
            scalable_dimension=dimension,
            # By the endpoint's attribute: registering fails until the endpoint is in service.
            resource_id=f"endpoint/{endpoint.attr_endpoint_name}/variant/{variant}",
            min_capacity=least,
            max_capacity=most,
        )
        scaling.CfnScalingPolicy(
            self,
            "Calls",
            policy_name="calls-per-machine",
            policy_type="TargetTrackingScaling",
            scaling_target_id=target.ref,
            target_tracking_scaling_policy_configuration=(
                scaling.CfnScalingPolicy.TargetTrackingScalingPolicyConfigurationProperty(
                    target_value=calls_per_minute(instance_type),
                    predefined_metric_specification=(
                        scaling.CfnScalingPolicy.PredefinedMetricSpecificationProperty(
                            predefined_metric_type="SageMakerVariantInvocationsPerInstance"
                        )
                    ),
                )
            ),
        )


def calls_per_minute(instance_type: str) -> int:
    """How many photos a minute one machine such as `ml.m5.large` is to answer."""
    size = instance_type.rsplit(".", 1)[1]
    times, xlarge, _ = size.partition("xlarge")
    vcpus = 4 * int(times or 1) if xlarge else 2  # "12xlarge" has 12 times 4
    return round(vcpus * CALLS_PER_SECOND_AND_VCPU * 60)
