"""What the machine is told by the Instance Metadata Service (version 2), through ec2-metadata."""

import logging
import os

from ec2_metadata import EC2Metadata
from urllib3.exceptions import HTTPError

log = logging.getLogger(__name__)


def instance_metadata() -> EC2Metadata:
    """The service at AWS_EC2_METADATA_SERVICE_ENDPOINT, the SDKs' own variable, or at its
    usual link-local address."""
    metadata = EC2Metadata()
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    if endpoint:
        metadata.service_url = f"{endpoint.rstrip('/')}/latest/"
        metadata.metadata_url = f"{metadata.service_url}meta-data/"
    return metadata


def interruption_notice(metadata: EC2Metadata) -> bool:
    """Whether EC2 is about to take this spot machine back: it says so two minutes before.

    A service that does not answer counts as no notice; it is asked again soon.
    """
    try:
        return metadata.spot_instance_action is not None
    except HTTPError as error:
        log.warning("instance metadata did not answer: %s", error)
        return False
