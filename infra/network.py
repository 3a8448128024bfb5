"""The network of training machines: public subnets, nothing may connect to them."""

from aws_cdk import aws_ec2 as ec2
from constructs import Construct

from infra.acknowledge import acknowledge


class TrainingNetwork(Construct):
    """A VPC in two zones and a security group that lets HTTPS out and nothing in.

    There is no NAT gateway, which would cost more than the training; traffic to S3 takes a
    gateway endpoint, which is free.
    """

    def __init__(self, scope: Construct, id: str) -> None:
        super().__init__(scope, id)
        self.vpc = ec2.Vpc(
            self,
            "Vpc",
            max_azs=2,
            nat_gateways=0,
            subnet_configuration=[
                ec2.SubnetConfiguration(
                    name="Public",
                    subnet_type=ec2.SubnetType.PUBLIC,
                    map_public_ip_on_launch=False,  # the launch template asks for an address
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
            "Flow logs would cost more than they tell: one machine, hours a month, nothing in.",
        )
        acknowledge(
            self.vpc,
            "VPCNoUnrestrictedRouteToIGW",
            "The route is the way to AWS's APIs; the security group lets nothing in.",
        )
        acknowledge(
            self.vpc,
            "VPCDefaultSecurityGroupClosed",
            "Emptying the default group takes a Lambda function; no machine is ever in it.",
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
