"""The metadata service as a training machine asks it, against the rehearsal's stand-in."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.server import ThreadingHTTPServer
from pathlib import Path

import botocore.session
import pytest

from rehearsal.aws.metadata_service import TOKEN_PATH, Metadata, start_imds
from training.machine.metadata_service import (
    fetch_identity,
    instance_metadata,
    interruption_notice,
    rebalance_recommended,
)

VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"


@pytest.fixture(scope="module")
def machine() -> Metadata:
    return Metadata(
        instance_id="i-0123456789",
        instance_type="m7i.large",
        zone="eu-west-1b",
        life_cycle="spot",
        role="machine-role",
        credentials=lambda: {
            "Code": "Success",
            "AccessKeyId": "ASIAMACHINE",
            "SecretAccessKey": "secret",
            "Token": "token",
            "Expiration": "2099-01-01T00:00:00Z",
        },
    )


@pytest.fixture(scope="module")
def server(machine: Metadata) -> Iterator[ThreadingHTTPServer]:
    server = start_imds(machine)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def endpoint(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> str:
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv(VARIABLE, endpoint)
    return endpoint


def status(request: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request) as answer:
            code: int = answer.status
            return code
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.usefixtures("endpoint")
def test_a_machine_learns_who_it_is() -> None:
    metadata = instance_metadata()
    assert metadata.instance_id == "i-0123456789"
    assert metadata.instance_type == "m7i.large"
    assert metadata.availability_zone == "eu-west-1b"
    assert metadata.instance_life_cycle == "spot"


def test_the_endpoint_may_end_in_a_slash(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{endpoint}/")
    assert instance_metadata().metadata_url == f"{endpoint}/latest/meta-data/"


def test_a_real_machine_asks_the_usual_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert instance_metadata().metadata_url == "http://169.254.169.254/latest/meta-data/"


@pytest.mark.parametrize("token", [None, "made-up"])
def test_nothing_is_told_without_a_token(endpoint: str, token: str | None) -> None:
    request = urllib.request.Request(f"{endpoint}/latest/meta-data/instance-id")
    if token:
        request.add_header("X-aws-ec2-metadata-token", token)
    assert status(request) == 401


def test_a_token_is_given_only_for_a_stated_time(endpoint: str) -> None:
    request = urllib.request.Request(f"{endpoint}{TOKEN_PATH}", method="PUT")
    assert status(request) == 400
    request.add_header("X-aws-ec2-metadata-token-ttl-seconds", "60")
    with suppress(ConnectionError):  # the first request may get no answer
        status(request)
    assert status(request) == 200


@pytest.mark.usefixtures("endpoint")
def test_a_notice_appears_and_the_one_who_gave_it_knows_that_it_was_read(
    machine: Metadata,
) -> None:
    metadata = instance_metadata()
    assert not interruption_notice(metadata)
    machine.give_notice(120)
    assert not machine.notice_seen.is_set()
    assert interruption_notice(metadata)
    assert machine.notice_seen.is_set()


@pytest.mark.usefixtures("endpoint")
def test_a_recommendation_to_rebalance_appears(machine: Metadata) -> None:
    metadata = instance_metadata()
    assert not rebalance_recommended(metadata)
    machine.recommend_rebalance()
    assert rebalance_recommended(metadata)
    assert metadata.rebalance_recommendation
    assert "noticeTime" in metadata.rebalance_recommendation


def test_a_service_that_does_not_answer_is_no_notice(
    machine: Metadata, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_imds(machine)
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{server.server_port}")
    metadata = instance_metadata()
    server.shutdown()
    server.server_close()
    assert not interruption_notice(metadata)
    assert not rebalance_recommended(metadata)
    assert caplog.text.count("the instance metadata service did not answer") == 2


def test_the_first_request_gets_no_answer(machine: Metadata) -> None:
    server = start_imds(machine)
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.server_port}{TOKEN_PATH}",
        headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"},
        method="PUT",
    )
    with pytest.raises(ConnectionError):
        status(request)
    assert status(request) == 200
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("endpoint")
def test_after_a_refused_token_a_notice_is_still_heard(machine: Metadata) -> None:
    metadata = instance_metadata()
    rebalance_recommended(metadata)
    metadata._token = "of another service"
    machine.give_notice(120)
    assert not interruption_notice(metadata)
    assert interruption_notice(metadata)


@pytest.mark.usefixtures("endpoint")
def test_an_answer_that_is_cut_off_is_no_notice(
    machine: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.give_notice(120)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "answer", lambda path: '{"action": "termi')
        assert not interruption_notice(instance_metadata())
    assert interruption_notice(instance_metadata())


def test_who_a_machine_is_is_known_even_when_the_service_is_gone(
    machine: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_imds(machine)
    monkeypatch.setenv(VARIABLE, f"http://127.0.0.1:{server.server_port}")
    metadata = instance_metadata()
    fetch_identity(metadata)
    server.shutdown()
    server.server_close()
    assert metadata.instance_id == "i-0123456789"
    assert metadata.instance_type == "m7i.large"
    assert metadata.availability_zone == "eu-west-1b"
    assert metadata.instance_life_cycle == "spot"


@pytest.mark.usefixtures("endpoint")
def test_the_sdk_finds_the_credentials_of_the_machine_s_role(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "2")
    credentials = botocore.session.Session().get_credentials()
    assert credentials is not None
    assert credentials.access_key == "ASIAMACHINE"
