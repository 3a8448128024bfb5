"""Records which calls each role makes, in IAM's terms, where moto would ask IAM about them.

tests/infra/test_permissions.py tests the roles' policies against the table. Names that differ from
run to run are written as `<run>`, `<bucket>` and so on. When the code makes new calls, review the
difference, and after `make demo` and `python -m rehearsal.notebook` run

    cp .demo/run/calls.csv tests/support/recorded_calls.csv
    cp .demo/notebook/calls.csv tests/support/recorded_notebook_calls.csv
"""

import csv
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from moto.core.authorization import ActionAuthenticatorMixin
from moto.sts.models import sts_backends

from rehearsal.aws.stand_in import ACCOUNT, REGION


@dataclass(frozen=True, order=True)
class Call:
    """One call of a role."""

    role: str  # its logical id in the stacks, without the hash
    action: str
    resource: str  # its ARN, or "*" for an action without resources
    condition: str = ""  # key=value of the condition key that our policies use


HERE = f"{REGION}:{ACCOUNT}"
# The name that CloudFormation generates for a role in our stacks.
ROLE = re.compile(r"(?:[\w-]+-)?(?:Budget|Data|Train|Endpoint)Stack-(\w+?)[0-9A-F]{8}-\w+")
SIGNED_AS = {"monitoring": "cloudwatch"}  # services whose signing name is not that of IAM
ACTIONS = {"budgets:DescribeBudget": "budgets:ViewBudget"}  # operations that IAM names differently
REFUSED = {"iam:SimulatePrincipalPolicy"}  # SageMaker's SDK calls it and ignores a refusal
NO_RESOURCE = re.compile(r"(autoscaling|ec2):Describe\w+|freetier:\w+|servicequotas:List\w+")
# The ARN of a call's resource, from the call's parameters.
RESOURCES = {
    "autoscaling": f"arn:aws:autoscaling:{HERE}:autoScalingGroup:<id>"
    ":autoScalingGroupName/{AutoScalingGroupName}",
    "budgets": f"arn:aws:budgets::{ACCOUNT}:budget/<budget>",
    "logs": f"arn:aws:logs:{HERE}:log-group:{{logGroupName}}:log-stream:<stream>",
    "servicequotas": f"arn:aws:servicequotas:{HERE}:{{ServiceCode}}/{{QuotaCode}}",
    "sagemaker": f"arn:aws:sagemaker:{HERE}:<kind>/bin-counter-<job>",
    "sns": f"arn:aws:sns:{HERE}:<topic>",
    "ssm": f"arn:aws:ssm:{HERE}:parameter{{Name}}",
}
BUCKET = re.compile(r"(?:[a-z0-9-]+-)?datastack-databucket\w+-\w+")
KEYS = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(runs|checkpoints)/[^/]+", r"\1/<run>"),
        (r"^(runs/<run>)/(bin-counter|tuning)-[^/]+", r"\1/<job>"),
        (r"(/input/sm_drivers)/.+", r"\1/<file>"),
        (r"^(runs/<run>/logs)/[^/]+", r"\1/<instance>.log"),
        (r"^(checkpoints/<run>)/.+", r"\1/<attempt>/<file>"),
        (r"^datasets/[^/]+", "datasets/<name>"),
        (r"^jobs/[^/]+/.+", "jobs/<job>/<file>"),
        (r"^preparing/[^/]+/\w+", "preparing/<name>/<key>"),
        (r"metadata-\d+-of-\d+", "metadata-<k>-of-<n>"),
        (r"(train|test)-\d+\.(tar|json)$", r"\1-<number>.\2"),
        (r"^weights/\w+", "weights/<arch>"),
        (r"^runtime/\w+", "runtime/<hash>"),
        (r"[^/]+\.whl$", "<wheel>"),
    )
]


def record_calls(note: Callable[[Call], None]) -> None:
    """From now on, call `note` for each call that moto receives from a role of our stacks."""
    check = ActionAuthenticatorMixin._authenticate_and_authorize_action

    def noted(request: Any, iam_request: type, resource: str = "*") -> None:
        role = _role(request)
        if role:
            for action, arn, condition in _questions(request, resource):
                note(Call(role, action, arn, condition))
        check(request, iam_request, resource)

    ActionAuthenticatorMixin._authenticate_and_authorize_action = noted  # type: ignore[assignment,method-assign]


class CallTable:
    """A file of the calls so far, sorted and without duplicates."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._calls: set[Call] = set()
        self._lock = threading.Lock()  # the server answers in threads
        self._write()

    def note(self, call: Call) -> None:
        with self._lock:
            if call not in self._calls:
                self._calls.add(call)
                self._write()

    def _write(self) -> None:
        with self._file.open("w", newline="") as output:
            rows = csv.writer(output, lineterminator="\n")
            rows.writerow(field.name for field in fields(Call))
            rows.writerows(astuple(call) for call in sorted(self._calls))


def read_calls(file: Path) -> set[Call]:
    """Read the calls of a table, which may have further columns."""
    names = [field.name for field in fields(Call)]
    with file.open(newline="") as rows:
        return {Call(*(row[name] for name in names)) for row in csv.DictReader(rows)}


def _credential(request: Any) -> list[str]:
    """Access key, date, region and service of a request's signature."""
    signature: str = request.headers.get("Authorization", "")
    return signature.partition("Credential=")[2].partition(",")[0].split("/")


def _role(request: Any) -> str | None:
    """The role of our stacks whose credentials signed `request`, if it is one."""
    key = _credential(request)[0]
    for session in sts_backends[ACCOUNT]["aws"].assumed_roles:
        if session.access_key_id == key:
            named = ROLE.fullmatch(session.role_arn.rpartition("/")[2])
            return named[1] if named else None
    return None


def _questions(request: Any, resource: str) -> Iterator[tuple[str, str, str]]:
    """Action, resource and condition that IAM evaluates for one request.

    `resource` is the one that moto derives, which is correct only for S3.
    """
    signed_as = _credential(request)[3]
    service = SIGNED_AS.get(signed_as, signed_as)
    action = f"{service}:{request._get_action()}"
    action = ACTIONS.get(action, action)
    if action in REFUSED:
        return
    if service == "s3":
        yield from _s3_questions(request, action, resource)
    elif service == "cloudwatch":
        yield action, "*", f"cloudwatch:namespace={request._get_param('Namespace')}"
    elif NO_RESOURCE.fullmatch(action):
        yield action, "*", ""
    else:
        arn = RESOURCES.get(service, f"{__name__} knows no ARN for this")
        arn = arn.replace("<kind>", _kind(action))
        arn = re.sub(r"{(\w+)}", lambda name: request._get_param(name[1]), arn)
        yield action, arn, _longest(request) if action.startswith("sagemaker:Create") else ""


def _kind(action: str) -> str:
    """The kind of SageMaker resource of an action."""
    return "hyper-parameter-tuning-job" if "HyperParameterTuningJob" in action else "training-job"


def _longest(request: Any) -> str:
    """The maximum runtime of a requested job, or of the trials of a search."""
    job = request._get_param("TrainingJobDefinition") or {}
    limit = job.get("StoppingCondition") or request._get_param("StoppingCondition")
    return f"sagemaker:MaxRuntimeInSeconds={limit['MaxRuntimeInSeconds']}"


def _s3_questions(request: Any, action: str, resource: str) -> Iterator[tuple[str, str, str]]:
    name, _, key = resource.removeprefix("arn:aws:s3:::").partition("/")
    bucket = f"arn:aws:s3:::{BUCKET.sub('<bucket>', name)}"
    if key:
        yield action, f"{bucket}/{_plain(key)}", ""
        if "If-Match" in request.headers and action in {"s3:PutObject", "s3:DeleteObject"}:
            # docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html
            yield "s3:GetObject", f"{bucket}/{_plain(key)}", ""
    else:
        prefix = request._get_param("prefix")
        yield action, bucket, f"s3:prefix={_plain(prefix)}" if prefix else ""


def _plain(key: str) -> str:
    """A key or prefix with placeholders for the names of one run."""
    for pattern, name in KEYS:
        key = pattern.sub(name, key)
    return key
