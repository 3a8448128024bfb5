"""`data_prep all --sagemaker`: the machines of a job make the same shards as a single machine."""

import itertools
import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError
from botocore.validate import ParamValidator
from moto.core.authorization import ActionAuthenticatorMixin
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from common.names import NAME_VARIABLE
from common.storage import list_keys
from data_prep import processing_job
from data_prep.__main__ import app, main
from data_prep.processing_job import Preparation, job_files, job_request
from data_prep.verify import verify_bucket
from rehearsal.aws.recorder import Call, read_calls, record_calls
from rehearsal.aws.stand_in import ROOT
from tests.support import training_account
from tests.support.closure import closure
from tests.support.policies import TABLES
from tests.support.processing_hosts import kill, start_hosts
from tests.support.public_bins import put_bins, uploaded
from tests.support.training_account import Account, Clock

account = training_account.account
ROLE = "arn:aws:iam::123456789012:role/bin-counter-TrainStack-PreparationJobRole0123ABCD-x"
DATA = "bin-counter-datastack-databucket0-x"
MACHINES = 3
IDS = ["00001", "00002", "3"]


def train_stack() -> dict[str, Any]:
    """Return the name and the template of the stack with the job's role."""
    outputs = {"PreparationJobRoleArn": {"Value": ROLE}}
    template = {"Resources": {"Any": {"Type": "AWS::SNS::Topic"}}, "Outputs": outputs}
    return {"StackName": "bin-counter-TrainStack", "TemplateBody": json.dumps(template)}


@pytest.fixture
def here(account: Account, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    """An account with a quota of five machines; `ids.txt` lists three photos."""
    boto3.client("cloudformation").update_stack(**train_stack())
    quota = {"QuotaName": "ml.m5.xlarge for processing job usage", "QuotaCode": "L-1", "Value": 5}
    account.answers["ListServiceQuotas"] = {"Quotas": [quota]}
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processing_job, "time", Clock())
    return account


def submit(*words: str) -> int:
    name = [] if "--name" in words else ["--name", "my_bins"]
    return main(["all", "--sagemaker", "--list", "ids.txt", "--bucket", "bins", *name, *words])


def parsed(words: list[str]) -> dict[str, Any]:
    """Parse a command line; returns the values of the command's parameters, by name."""
    _, bound, _ = app.parse_args(words)
    bound.apply_defaults()
    return bound.arguments


def jobs() -> list[Any]:
    return list(boto3.client("sagemaker").list_processing_jobs()["ProcessingJobSummaries"])


def test_a_dry_run_prints_a_request_that_the_api_takes_and_starts_nothing(
    here: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dry-run", "--instances", "2", "--counts", "0-9", "--split", "random"]
    assert submit(*words, "--name", "größe_" + "x" * 60) == 0
    printed = capsys.readouterr()
    request = json.loads(printed.out)
    shape = boto3.client("sagemaker").meta.service_model.operation_model("CreateProcessingJob")
    report = ParamValidator().validate(request, shape.input_shape)
    assert not report.has_errors(), report.generate_report()
    assert request["RoleArn"] == ROLE
    name = request["ProcessingJobName"]
    assert re.fullmatch(r"bin-counter-gr--e-x+-[a-z0-9-]+", name)
    assert len(name) <= 63
    told = parsed(["all", *request["AppSpecification"]["ContainerArguments"], "--limit", "1"])
    dataset = told["dataset"]
    assert (dataset.counts, dataset.method, dataset.name[:6]) == (range(10), "random", "größe_")
    assert "2 × ml.m5.xlarge for 3 h 00 min at most: $1.41 at most with disks" in printed.err
    assert not jobs()
    assert not here.order("PutObject")


@pytest.mark.parametrize("copy", ["a-name", "a-name-as-it-may-b"])
def test_a_job_s_name_fits_whatever_its_parts_are_called(
    here: Account, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, copy: str
) -> None:
    monkeypatch.setenv(NAME_VARIABLE, copy)
    boto3.client("cloudformation").create_stack(
        **train_stack() | {"StackName": f"{copy}-TrainStack"}
    )
    assert submit("--dry-run", "--name", "x" * 60) == 0
    name = json.loads(capsys.readouterr().out)["ProcessingJobName"]
    assert re.fullmatch(f"{copy}-x+-[a-z0-9-]+", name)
    assert len(name) <= 63


def test_too_few_machines_print_the_command_that_asks_for_more(
    here: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("--yes", "--instances", "8") == 1
    said = capsys.readouterr()
    assert "--quota-code L-1 --desired-value 8" in said.out
    assert "error: not started, see above: quota" in said.err
    assert not jobs()


def state(status: str, **more: Any) -> dict[str, Any]:
    """Return what DescribeProcessingJob answers."""
    return {"ProcessingJobStatus": status, "CreationTime": datetime(2026, 1, 1, tzinfo=UTC), **more}


def test_a_job_is_started_with_its_files_and_followed_to_its_end(
    here: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter([state("InProgress"), state("Completed")])
    here.answers["DescribeProcessingJob"] = lambda _: next(answers)
    here.put("preparing/my_bins/0123/metadata-1-of-2.csv")
    here.put("preparing/my_bins/0123/train-00000.json")
    assert submit("--yes", "--instances", "2") == 0
    (job,) = jobs()
    name = job["ProcessingJobName"]
    keys = list_keys(here.s3, "bins", f"jobs/{name}/")
    names = {key.rpartition("/")[2] for key in keys}
    assert names == {"code.tar.gz", "ids.txt", "processing_entry.py", "requirements.txt"}
    ids = here.s3.get_object(Bucket="bins", Key=f"jobs/{name}/ids.txt")["Body"].read()
    assert ids.decode().split() == IDS
    said = capsys.readouterr().out
    assert f"stop it with `aws sagemaker stop-processing-job --processing-job-name {name}`" in said
    assert "InProgress; metadata of 1 machines, 1 shards" in said
    assert said.endswith("s3://bins/datasets/my_bins/\n")


def test_a_job_that_fails_says_why_and_where_to_read_more(
    here: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = state("Failed", FailureReason="AlgorithmError:\n exit code 1")
    here.answers["DescribeProcessingJob"] = failed
    assert submit("--yes") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "failed: AlgorithmError: exit code 1; `aws logs tail /aws/sagemaker/Proc" in line


def test_a_job_goes_on_without_who_started_it(
    here: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    here.answers["DescribeProcessingJob"] = KeyboardInterrupt()
    with pytest.raises(SystemExit) as caught:
        submit("--yes")
    assert caught.value.code == 130
    assert "the job continues; to see it, run `aws sagemaker describe-p" in capsys.readouterr().err
    assert "StopProcessingJob" not in here.order("StopProcessingJob")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--source", "folder", "mine"], "a job cannot read your own photos"),
        (["--instance-type", "ml.x9.huge"], "choose one of them with --instance-type"),
        (["--instance-type", "m5.xlarge"], "there is no image for m5.xlarge in us-east-1: Invalid"),
        (["--share", "1/2"], "leave --share out"),
        ([], "error: not started"),
    ],
)
def test_what_is_wrong_is_one_line(
    here: Account,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    says: str,
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert submit(*words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not jobs()


@pytest.mark.parametrize(
    "words",
    [
        ("--instances", "2"),
        ("--instance-type", "ml.c5.xlarge"),
        ("--max-hours", "1"),
        ("--dry-run",),
        ("--yes",),
    ],
)
def test_what_is_for_a_job_is_not_ignored_without_one(
    here: Account, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert main(["all", "--bucket", "bins", "--list", "ids.txt", *words]) == 1
    message = f"{words[0]} is for a job on SageMaker: give --sagemaker as well"
    assert capsys.readouterr().err == f"error: {message}\n"


@dataclass(frozen=True, kw_only=True)
class Site:
    """The public bucket with synthetic bins, our bucket, and the job's role and its calls."""

    s3: Any
    ids: list[str]
    folder: Path
    role: dict[str, str]  # environment variables with its credentials
    calls: set[Call]

    def flags(self, size: str = "48") -> list[str]:
        settings = ["--size", size, "--shard-mb", "0.1", "--workers", "1", "--requests", "4"]
        return ["all", *settings, "--bucket", DATA]

    def by_one_machine(self) -> dict[str, str]:
        """Make the data set on this machine and delete it; returns the hashes of its files."""
        (self.folder / "ids.txt").write_text("\n".join(self.ids))
        places = ["--list", str(self.folder / "ids.txt"), "--data", str(self.folder / "alone")]
        assert main([*self.flags(), *places]) == 0
        expected = uploaded(self.s3, DATA)
        for name in expected:
            self.s3.delete_object(Bucket=DATA, Key=f"datasets/bins/{name}")
        return expected

    def packed(self) -> dict[str, Any]:
        """Return the upload times of the shards that the machines have announced, by name."""
        told = list_keys(self.s3, DATA, "preparing/")
        names = {Path(key).stem for key in told if key.endswith(".json")}
        shards = self.s3.list_objects_v2(Bucket=DATA, Prefix="datasets/").get("Contents", [])
        times = {Path(item["Key"]).stem: item["LastModified"] for item in shards}
        return {name: times[name] for name in names}

    def start(self, name: str, *more: str) -> list["subprocess.Popen[str]"]:
        words = [*self.flags(), "--sagemaker", "--instances", str(MACHINES), *more]
        options = parsed(words)
        del options["data"], options["share"]
        request = job_request(boto3.Session(), name, Preparation(ids=self.ids, **options))
        files = job_files(self.ids)
        return start_hosts(request, files, self.folder / name, self.role)


@pytest.fixture
def site(served_s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    client, ids = put_bins(tmp_path / "public", 200, ours=DATA)
    boto3.client("cloudformation").create_stack(**train_stack())
    taken = boto3.client("sts").assume_role(RoleArn=ROLE, RoleSessionName="job")["Credentials"]
    role = {
        "AWS_ACCESS_KEY_ID": taken["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": taken["SecretAccessKey"],
        "AWS_SESSION_TOKEN": taken["SessionToken"],
        "AWS_ENDPOINT_URL_S3": served_s3,
        "SHARE_LOOK_SECONDS": "0.1",
    }
    calls: set[Call] = set()
    check = ActionAuthenticatorMixin._authenticate_and_authorize_action
    monkeypatch.setattr(ActionAuthenticatorMixin, "_authenticate_and_authorize_action", check)
    record_calls(calls.add)
    return Site(s3=client, ids=ids, folder=tmp_path, role=role, calls=calls)


def test_the_machines_of_a_job_make_the_shards_of_one_with_the_rights_of_its_role(
    site: Site,
) -> None:
    expected = site.by_one_machine()
    for host in site.start("job"):
        said, _ = host.communicate(timeout=600)
        assert host.returncode == 0, said
    assert uploaded(site.s3, DATA) == expected
    table = read_calls(TABLES / "recorded_preparation_calls.csv")
    assert site.calls == table, "check each call, then update the table"


@pytest.mark.slow
def test_a_job_that_lost_a_machine_is_completed_by_the_next(site: Site) -> None:
    expected = site.by_one_machine()
    hosts = site.start("first")
    while not (packed := site.packed()):  # until a shard exists that the next job can keep
        with suppress(subprocess.TimeoutExpired):
            hosts[1].wait(0.05)
    for host in [hosts[1], hosts[0], hosts[2]]:  # SageMaker stops the others
        kill(host)
    assert "manifest.json" not in uploaded(site.s3, DATA)
    for host in site.start("second"):
        said, _ = host.communicate(timeout=600)
        assert host.returncode == 0, said
    assert uploaded(site.s3, DATA) == expected
    assert packed.items() <= site.packed().items(), "existing shards are not made again"


@pytest.mark.slow
def test_shards_of_other_settings_are_not_taken_for_ours(site: Site) -> None:
    usual = site.by_one_machine()
    words = ["--list", str(site.folder / "ids.txt"), "--share", "1/1"]
    for size in ("48", "40", "48"):
        folder = site.folder / size
        assert main([*site.flags(size), *words, "--data", str(folder)]) == 0
        assert verify_bucket(DATA, "bins") == []
    assert uploaded(site.s3, DATA) == usual


def test_why_a_machine_failed_is_the_jobs_exit_message(site: Site) -> None:
    hosts = site.start("small", "--min-photos", "1000")
    for host in hosts:
        host.communicate(timeout=600)
        assert host.returncode == 1
    message = site.folder / "small" / "algo-1" / "opt/ml/output/message"
    assert "error: " in message.read_text()
    assert "1000" in message.read_text().replace(",", "")


@pytest.mark.parametrize("status", ["InProgress", "Stopping"])
def test_a_second_job_for_a_data_set_is_not_started(
    here: Account, capsys: pytest.CaptureFixture[str], status: str
) -> None:
    over, going_on = (
        {"ProcessingJobName": name, "ProcessingJobStatus": status}
        for name, status in (("the-second", "Failed"), ("the-first", status))
    )
    here.answers["ListProcessingJobs"] = {"ProcessingJobSummaries": [over, going_on]}
    assert submit("--yes") == 1
    assert "job the-first is preparing this data set" in capsys.readouterr().err
    assert not here.order("CreateProcessingJob")


def test_a_job_for_a_data_set_with_a_like_name_is_no_second_one() -> None:
    names = ["bins", "bins-2", "my_bins", "my-bins", "x" * 30 + "1", "x" * 30 + "2"]
    series = [processing_job.series_of(name) for name in names]
    for one, other in itertools.permutations(series, 2):
        assert one not in f"{other}20261127120000-abcd"


def test_a_job_goes_on_when_the_network_fails_here(
    here: Account, capsys: pytest.CaptureFixture[str]
) -> None:
    here.answers["DescribeProcessingJob"] = EndpointConnectionError(endpoint_url="https://aws")
    assert submit("--yes") == 1
    goes_on, error = capsys.readouterr().err.splitlines()
    assert "the job continues; to see it, run `aws sagemaker describe-processing-job" in goes_on
    assert error.startswith("error: Could not connect")


def test_requirements_name_all_that_a_machine_imports() -> None:
    script = "import sys, data_prep.__main__; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    providers = packages_distributions()
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    found = {canonicalize_name(by) for name in imported for by in providers.get(name, ())}
    lines = processing_job.REQUIREMENTS.read_text().splitlines()
    named = [Requirement(line.partition("#")[0]).name for line in lines if line[0] != "#"]
    # setuptools runs whenever Python starts; botocore uses certifi if it is installed.
    assert found - closure(named) == {"certifi", "setuptools"}
