"""What the machine is told by the Instance Metadata Service (version 2), through ec2-metadata."""

import logging
import os
from http import HTTPStatus

from ec2_metadata import EC2Metadata
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

log = logging.getLogger(__name__)


class InstanceMetadata(EC2Metadata):
    """ec2-metadata, what it does not read, and a new token after a refusal."""

    @property
    def rebalance_recommendation(self) -> str | None:
        """JSON with the time of EC2's recommendation, or None.

        docs.aws.amazon.com/AWSEC2/latest/UserGuide/rebalance-recommendations.html
        """
        url = f"{self.metadata_url}events/recommendations/rebalance"
        answer = self._get_url(url, allow_404=True)
        return None if answer.status == HTTPStatus.NOT_FOUND else answer.data.decode()

    def _get_url(self, url: str, allow_404: bool = False) -> HTTPResponse:
        try:
            return super()._get_url(url, allow_404)
        except HTTPError:
            self._token_updated_at = 0.0  # or a refused token would be shown for six hours
            raise


def instance_metadata() -> InstanceMetadata:
    """The service at AWS_EC2_METADATA_SERVICE_ENDPOINT, the SDKs' own variable, or at its
    usual link-local address."""
    metadata = InstanceMetadata()
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    if endpoint:
        metadata.service_url = f"{endpoint.rstrip('/')}/latest/"
        metadata.metadata_url = f"{metadata.service_url}meta-data/"
    return metadata


def learn_identity(metadata: InstanceMetadata) -> None:
    """Ask once for what the run's record says of a machine, and never again.

    Raises HTTPError when the service does not answer.
    """
    for name in ("instance_id", "instance_type", "availability_zone", "instance_life_cycle"):
        getattr(metadata, name)


def interruption_notice(metadata: InstanceMetadata) -> bool:
    """Whether EC2 is about to take this spot machine back: it says so two minutes before.

    A service that does not answer counts as no notice; it is asked again soon.
    """
    return _is_said(metadata, "spot_instance_action")


def rebalance_recommended(metadata: InstanceMetadata) -> bool:
    """Whether EC2 says that an interruption has become more likely, often long before a notice.

    A service that does not answer counts as no recommendation; it is asked again soon.
    """
    return _is_said(metadata, "rebalance_recommendation")


def _is_said(metadata: InstanceMetadata, name: str) -> bool:
    try:
        return getattr(metadata, name) is not None
    except (HTTPError, ValueError) as error:  # no answer, or one that is cut off
        log.warning("instance metadata did not answer: %s", error)
        return False
