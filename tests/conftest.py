"""Fixtures that more than one test file needs."""

import functools
import logging
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.loaders import JSONFileLoader
from moto import mock_aws
from moto.server import ThreadedMotoServer

from data_prep.synthetic import synthesize as draw_bins
from rehearsal.aws.ports import free_port
from rehearsal.speed import measure_speed
from tests.support.synthesized import Template, synthesize

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

HERE = Path(__file__).parent
SUITE_MINUTES = 20  # on the reference machine of rehearsal/speed.py, three tests at a time

read_api = functools.cache(JSONFileLoader().load_file)
# Files that start processes, train networks, synthesize stacks or ask a server often: most of the
# time that the tests take. `make test-fast` leaves them out.
NOT_FAST = set((HERE / "not_fast.txt").read_text().split())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out what takes most of the time")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With --fast, not even import what is left out."""
    inside = collection_path.relative_to(HERE) if HERE in collection_path.parents else None
    return True if config.getoption("--fast") and str(inside) in NOT_FAST else None


# A shell starts what it has in the background with Ctrl-C ignored, and so would every process of
# a test be.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say what `make test` is going to do, and how long that takes here."""
    if not _is_whole(session.config):
        return
    minutes = SUITE_MINUTES / measure_speed(cores=2)
    _say(session.config, f"Every test but the demo's: about {minutes:.0f} minutes on this machine.")


def pytest_terminal_summary(exitstatus: int, config: pytest.Config) -> None:
    if _is_whole(config) and exitstatus == 0:
        _say(
            config,
            "Proven: data, training, serving and costs do what their tests say; the stacks pass "
            "cdk-nag, cfn-lint and checkov, and no role may do more than it does; machines and "
            "jobs that are interrupted, killed or refused end as docs/operate.md lists; the "
            "notebook runs. Only an AWS account can show the rest: docs/deploy.md.",
        )


def _is_whole(config: pytest.Config) -> bool:
    """Whether these are all tests, in the process that shows the result."""
    option = config.option
    again = config.getoption("lf", False)  # unknown without the cache
    part = option.fast or option.keyword or again or option.markexpr != "not slow"
    of_all = config.args == config.getini("testpaths")
    return of_all and not part and not hasattr(config, "workerinput")


def _say(config: pytest.Config, text: str) -> None:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter:
        reporter.write_line(text)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test goes first: the other process has enough to do meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_notebook.py")


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty account, mocked, in us-east-1."""

    def load_file(_: JSONFileLoader, path: str) -> Any:
        return read_api(path)

    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_REGION", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    # Both halve the time of a test: descriptions of APIs are read once, machine images never.
    monkeypatch.setattr(JSONFileLoader, "load_file", load_file)
    monkeypatch.setenv("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")
    with mock_aws():
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """URL of a server with the mocked account's S3, for what does not go through botocore."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def served_s3(aws: None, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The mocked account's S3 is reached over HTTP; returns its URL."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    return s3_server


@pytest.fixture
def client(aws: None) -> "S3Client":
    """S3 in the mocked account, where the bucket `ours` is empty."""
    client = boto3.client("s3")
    client.create_bucket(Bucket="ours")
    return client


@pytest.fixture(scope="session")
def bins_tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawn bins in a tar laid out as the public bucket."""
    folder = tmp_path_factory.mktemp("public")
    draw_bins(folder, 60, 0, sides=range(64, 65), workers=1)
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for name in ("bin-images", "metadata"):
            tar.add(folder / name, arcname=name)
    return folder / "photos.tar"


@pytest.fixture(scope="session")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    """Stack id to template, with the default settings. Made once: it takes seconds."""
    return synthesize(tmp_path_factory.mktemp("cdk.out"))


@pytest.fixture(scope="session")
def other_stacks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    """Stack id to template, with every choice of the settings made the other way."""
    return synthesize(
        tmp_path_factory.mktemp("cdk.out"),
        name="bins-dev",
        alert_email="you@example.com",
        alert_percentages="90",
        kms="customer",
        on_destroy="delete",
        over_budget="deny",
        cost_dashboard="yes",
        machine="gpu",
        purchase="on_demand",
        endpoint="realtime",
        endpoint_instances="2",
        endpoint_max_instances="4",
        endpoint_traffic="canary",
        serving_image="123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/bins:1.0",
    )
