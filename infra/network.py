"""The network of training machines: public subnets without inbound connections."""

import os
import re

from aws_cdk import Environment, Stack
from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from infra.acknowledge import acknowledge

SUBNET_BITS = 20  # for any number of zones, so that another zone does not move the existing subnets


class TrainingNetwork(Construct):
    """A VPC in all zones of the region, as each has its own spot machines, and a security group
    that allows HTTPS out and nothing in.

    There is no NAT gateway, which would cost more than the training; traffic to S3 uses a gateway
    endpoint, which is free.
    """

    def __init__(self, scope: Construct, id: str) -> None:
        super().__init__(scope, id)
        zones = find_zones(self)
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            availability_zones=zones,
            max_azs=None if zones else 2,
            nat_gateways=0,
            subnet_configuration=[
                ec2.SubnetConfiguration(
                    name="Public",
                    subnet_type=ec2.SubnetType.PUBLIC,
                    cidr_mask=SUBNET_BITS,
                    map_public_ip_on_launch=False,  # the launch template requests an address
                )
            ],
            gateway_endpoints={
                "S3": ec2.GatewayVpcEndpointOptions(service=ec2.GatewayVpcEndpointAwsService.S3)
            },
            restrict_default_security_group=False,
        )
        acknowledge(
            self.vpc,
            ["VPC7", "VPCFlowLogsEnabled"],
            "Flow logs are not worth their cost: one machine, hours a month, nothing inbound.",
        )
        acknowledge(
            self.vpc,
            "VPCNoUnrestrictedRouteToIGW",
            "The route leads to AWS's APIs; the security group allows nothing in.",
        )
        acknowledge(
            self.vpc,
            "VPCDefaultSecurityGroupClosed",
            "Emptying the default group takes a Lambda function, and no machine uses the group.",
        )
        self.security_group = ec2.SecurityGroup(
            self,
            "Machine",
            vpc=self.vpc,
            description="Training machines: HTTPS out, nothing in",
            allow_all_outbound=False,
        )
        self.security_group.add_egress_rule(
            ec2.Peer.any_ipv4(), ec2.Port.tcp(443), "AWS APIs and S3"
        )


def find_zones(scope: Construct) -> list[str] | None:
    """The zones of the region, or None if the CDK's command line knows no account.

    The command line looks them up with the user's credentials and stores them in cdk.context.json,
    so that a new zone changes nothing. The stacks remain independent of account and region.
    """
    account, region = os.environ.get("CDK_DEFAULT_ACCOUNT"), os.environ.get("CDK_DEFAULT_REGION")
    if not account or not region:
        return None
    found = scope.node.try_get_context(f"availability-zones:account={account}:region={region}")
    if found is None:
        # Only a stack with an account can request the lookup. The command line then runs the app
        # again, with the zones and without this stack.
        here = Environment(account=account, region=region)
        _ = Stack(scope, "Zones", env=here).availability_zones
        return None
    # Local and Wavelength Zones, which an account may have enabled, have longer names.
    return [zone for zone in found if re.fullmatch(rf"{re.escape(region)}[a-z]", zone)]
