"""The group that starts a training machine, replaces a lost one, and rests at zero."""

from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from constructs import Construct

from infra.acknowledge import acknowledge
from infra.config import Config
from infra.names import group_name
from infra.network import TrainingNetwork


class SpotTrainer(Construct):
    """An Auto Scaling group of no or one machine that runs `user_data` at boot.

    The template sets no desired capacity, so that a deploy neither starts nor ends a machine.
    CloudFormation cannot suspend the group's zone rebalancing; `training.launch` does that.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        config: Config,
        network: TrainingNetwork,
        user_data: str,
        alerts: sns.ITopic,
        key: kms.IKey | None,
    ) -> None:
        super().__init__(scope, id)
        self.role = iam.Role(
            self, "MachineRole", assumed_by=iam.ServicePrincipal("ec2.amazonaws.com")
        )
        template = ec2.LaunchTemplate(
            self,
            "Template",
            machine_image=ec2.MachineImage.from_ssm_parameter(config.ami_parameter),
            instance_type=ec2.InstanceType(config.instance_types[0]),
            role=self.role,
            security_group=network.security_group,
            associate_public_ip_address=True,
            user_data=ec2.UserData.custom(user_data),
            block_devices=[
                ec2.BlockDevice(
                    device_name="/dev/xvda",
                    volume=ec2.BlockDeviceVolume.ebs(
                        config.volume_gib,
                        volume_type=ec2.EbsDeviceVolumeType.GP3,
                        encrypted=True,
                        kms_key=key,
                        delete_on_termination=True,
                    ),
                )
            ],
            require_imdsv2=True,
            http_put_response_hop_limit=1,
            instance_initiated_shutdown_behavior=ec2.InstanceInitiatedShutdownBehavior.TERMINATE,
        )
        self.group = autoscaling.AutoScalingGroup(
            self,
            "Group",
            auto_scaling_group_name=group_name(config.name),
            vpc=network.vpc,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PUBLIC),
            min_capacity=0,
            max_capacity=1,
            capacity_rebalance=False,
            mixed_instances_policy=autoscaling.MixedInstancesPolicy(
                launch_template=template,
                launch_template_overrides=[
                    autoscaling.LaunchTemplateOverrides(instance_type=ec2.InstanceType(name))
                    for name in config.instance_types
                ],
                instances_distribution=autoscaling.InstancesDistribution(
                    on_demand_base_capacity=0,
                    on_demand_percentage_above_base_capacity=(
                        100 if config.purchase == "on_demand" else 0
                    ),
                    on_demand_allocation_strategy=autoscaling.OnDemandAllocationStrategy.LOWEST_PRICE,
                    spot_allocation_strategy=(
                        autoscaling.SpotAllocationStrategy.PRICE_CAPACITY_OPTIMIZED
                    ),
                ),
            ),
            # Free, but off unless asked for; the dashboard shows them.
            group_metrics=[
                autoscaling.GroupMetrics(
                    autoscaling.GroupMetric.DESIRED_CAPACITY,
                    autoscaling.GroupMetric.IN_SERVICE_INSTANCES,
                )
            ],
            # No capacity must not be silent.
            notifications=[
                autoscaling.NotificationConfiguration(
                    topic=alerts,
                    scaling_events=autoscaling.ScalingEvents(
                        autoscaling.ScalingEvent.INSTANCE_LAUNCH_ERROR
                    ),
                )
            ],
        )
        acknowledge(
            self.group, "AS3", "Only failures need somebody; launches and ends are part of a run."
        )
        acknowledge(
            self.group,
            ["EC26", "EC2IMDSv2Enabled"],
            "The rule fails on a mixed instances policy; the template has encryption and IMDSv2.",
        )
        acknowledge(
            template,
            "CKV_AWS_88",
            "A public address costs $0.005 an hour, a NAT gateway $32 a month; nothing gets in.",
        )
