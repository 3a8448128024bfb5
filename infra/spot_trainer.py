"""The Auto Scaling groups that start a training machine and replace a lost one."""

from aws_cdk import aws_autoscaling as autoscaling
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from constructs import Construct

from infra.acknowledge import acknowledge
from infra.config import Config
from infra.network import TrainingNetwork


class SpotTrainer(Construct):
    """Auto Scaling groups of at most one machine, which runs `user_data` at boot.

    With spot_first there are two: each group buys either spot or on demand, and only the start of
    a group can be scheduled. No desired capacity is set, so that a deploy neither starts nor ends
    a machine. CloudFormation cannot suspend the zone rebalancing of a group; `training.launch`
    does that.
    """

    def __init__(
        self,
        scope: Construct,
        id: str,
        *,
        config: Config,
        network: TrainingNetwork,
        user_data: str,
        key: kms.IKey | None,
    ) -> None:
        super().__init__(scope, id)
        self.role = iam.Role(
            self, "MachineRole", assumed_by=iam.ServicePrincipal("ec2.amazonaws.com")
        )
        self._config, self._network = config, network
        self._template = self._launch_template(user_data, key)
        first, *fallback = config.group_names
        self._group("Group", first, on_demand=config.purchase == "on_demand")
        for name in fallback:
            self._group("OnDemandGroup", name, on_demand=True)

    def _launch_template(self, user_data: str, key: kms.IKey | None) -> ec2.LaunchTemplate:
        config = self._config
        template = ec2.LaunchTemplate(
            self,
            "Template",
            machine_image=ec2.MachineImage.from_ssm_parameter(config.ami_parameter),
            instance_type=ec2.InstanceType(config.instance_types[0]),
            role=self.role,
            security_group=self._network.security_group,
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
        acknowledge(
            template,
            "CKV_AWS_88",
            "A public address costs $0.005 an hour, a NAT gateway $32 a month; inbound is closed.",
        )
        return template

    def _group(self, id: str, name: str, *, on_demand: bool) -> None:
        group = autoscaling.AutoScalingGroup(
            self,
            id,
            auto_scaling_group_name=name,
            vpc=self._network.vpc,
            vpc_subnets=ec2.SubnetSelection(subnet_type=ec2.SubnetType.PUBLIC),
            min_capacity=0,
            max_capacity=1,
            capacity_rebalance=False,
            mixed_instances_policy=autoscaling.MixedInstancesPolicy(
                launch_template=self._template,
                launch_template_overrides=[
                    autoscaling.LaunchTemplateOverrides(instance_type=ec2.InstanceType(each))
                    for each in self._config.instance_types
                ],
                instances_distribution=autoscaling.InstancesDistribution(
                    on_demand_base_capacity=0,
                    on_demand_percentage_above_base_capacity=100 if on_demand else 0,
                    on_demand_allocation_strategy=autoscaling.OnDemandAllocationStrategy.LOWEST_PRICE,
                    spot_allocation_strategy=(
                        autoscaling.SpotAllocationStrategy.PRICE_CAPACITY_OPTIMIZED
                    ),
                ),
            ),
            # Free, but off by default; the dashboard and the alarm use them.
            group_metrics=[
                autoscaling.GroupMetrics(
                    autoscaling.GroupMetric.DESIRED_CAPACITY,
                    autoscaling.GroupMetric.IN_SERVICE_INSTANCES,
                )
            ],
        )
        acknowledge(group, "AS3", "NoMachineAlarm notifies once when no machine starts.")
        acknowledge(
            group,
            ["EC26", "EC2IMDSv2Enabled"],
            "The rule does not support mixed instances; the template has encryption and IMDSv2.",
        )
