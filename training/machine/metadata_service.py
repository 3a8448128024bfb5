"""The Instance Metadata Service (version 2), read with ec2-metadata."""

import logging
import os
from http import HTTPStatus

from ec2_metadata import EC2Metadata
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

log = logging.getLogger(__name__)


class InstanceMetadata(EC2Metadata):
    """ec2-metadata with rebalance recommendations, and a new token after an error."""

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
            self._token_updated_at = 0.0  # or an invalid token would be used for six hours
            raise


def instance_metadata() -> InstanceMetadata:
    """Connect to the service at AWS_EC2_METADATA_SERVICE_ENDPOINT, as the SDKs do.

    By default, it has a link-local address.
    """
    metadata = InstanceMetadata()
    endpoint = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT")
    if endpoint:
        metadata.service_url = f"{endpoint.rstrip('/')}/latest/"
        metadata.metadata_url = f"{metadata.service_url}meta-data/"
    return metadata


def fetch_identity(metadata: InstanceMetadata) -> None:
    """Read and cache what the run's record says about a machine.

    Raises HTTPError if the service does not answer.
    """
    for name in ("instance_id", "instance_type", "availability_zone", "instance_life_cycle"):
        getattr(metadata, name)


def interruption_notice(metadata: InstanceMetadata) -> bool:
    """Whether EC2 has announced the interruption of this spot machine, two minutes ahead.

    An error of the service counts as no notice; the caller asks again soon.
    """
    return _is_present(metadata, "spot_instance_action")


def rebalance_recommended(metadata: InstanceMetadata) -> bool:
    """Whether EC2 considers an interruption likely, often long before its notice.

    An error of the service counts as no recommendation; the caller asks again soon.
    """
    return _is_present(metadata, "rebalance_recommendation")


def _is_present(metadata: InstanceMetadata, name: str) -> bool:
    try:
        return getattr(metadata, name) is not None
    except (HTTPError, ValueError) as error:  # no answer, or a truncated one
        log.warning("the instance metadata service did not answer: %s", error)
        return False
