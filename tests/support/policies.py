"""The stacks' policies as AWS would get them, and an evaluator that tests can ask."""

import csv
import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rehearsal.aws.recorder import HERE, Call, read_calls
from rehearsal.aws.stand_in import ACCOUNT, REGION
from tests.support.synthesized import Template

Policy = dict[str, Any]
TABLES = Path(__file__).parent
HASH = re.compile(r"[0-9A-F]{8}$")  # that CDK appends to a logical id
PSEUDO = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::URLSuffix": "amazonaws.com",
}
PHYSICAL = {
    "DataBucket": "<bucket>",
    "Alerts": "<topic>",
}  # as rehearsal.aws.recorder has them


@dataclass(frozen=True, kw_only=True)
class Request:
    """What IAM decides on; `context` holds the condition keys."""

    principal: str  # an ARN in any account, or a service such as budgets.amazonaws.com
    action: str
    resource: str  # in our account
    context: Mapping[str, str] = field(default_factory=dict)
    identity_policy: Policy | None = None
    resource_policy: Policy | None = None


def new_calls(recording: Path, table: str) -> tuple[set[Call], set[Call]]:
    """What a recording has that the tables lack, and what `table` has that it lacks."""
    calls, recorded = read_calls(recording), read_calls(TABLES / table)
    documented = read_calls(TABLES / "documented_calls.csv")
    return calls - recorded - documented, recorded - calls - documented


def documented_calls(settings: Mapping[str, str]) -> set[Call]:
    """The rows of documented_calls.csv that hold with `settings`."""
    with (TABLES / "documented_calls.csv").open(newline="") as table:
        return {
            Call(row["role"], row["action"], row["resource"], row["condition"])
            for row in csv.DictReader(table)
            if not row["setting"] or tuple(row["setting"].split("=")) in settings.items()
        }


class Deployed:
    """Templates with every intrinsic function resolved, account and region the rehearsal's."""

    def __init__(self, stacks: Mapping[str, Template]) -> None:
        self._raw = {name: template.raw for name, template in stacks.items()}
        self._exports = {
            output["Export"]["Name"]: (stack, output["Value"])
            for stack, raw in self._raw.items()
            for output in raw.get("Outputs", {}).values()
            if "Export" in output
        }

    def of_type(self, type: str) -> dict[str, Any]:
        """Logical id, without its hash, to properties of every resource of `type`."""
        return {
            HASH.sub("", name): self._resolve(resource.get("Properties", {}), stack)
            for stack, raw in self._raw.items()
            for name, resource in raw["Resources"].items()
            if resource["Type"] == type
        }

    def role_policies(self) -> dict[str, Policy]:
        """Role to everything that its policies say."""
        roles = self.of_type("AWS::IAM::Role")
        documents = {
            role: [policy["PolicyDocument"] for policy in properties.get("Policies", [])]
            for role, properties in roles.items()
        }
        for policy in self.of_type("AWS::IAM::Policy").values():
            for role in policy["Roles"]:
                documents[role.strip("<>")].append(policy["PolicyDocument"])
        return {
            role: {
                "Version": "2012-10-17",
                "Statement": [s for document in found for s in document["Statement"]],
            }
            for role, found in documents.items()
        }

    def resource_policies(self) -> dict[str, Policy]:
        """ARN to the policy of each bucket, topic and key that has one."""
        policies: dict[str, Policy] = {}
        for policy in self.of_type("AWS::S3::BucketPolicy").values():
            policies[f"arn:aws:s3:::{policy['Bucket']}"] = policy["PolicyDocument"]
        for policy in self.of_type("AWS::SNS::TopicPolicy").values():
            policies |= dict.fromkeys(policy["Topics"], policy["PolicyDocument"])
        for name, key in self.of_type("AWS::KMS::Key").items():
            policies[f"arn:aws:kms:{HERE}:key/<{name}>"] = key["KeyPolicy"]
        return policies

    def _resolve(self, value: Any, stack: str) -> Any:
        match value:
            case {"Ref": name}:
                return PSEUDO.get(name) or self._named(name, stack)["Ref"]
            case {"Fn::GetAtt": [name, "Arn"]}:
                return self._named(name, stack)["Arn"]
            case {"Fn::GetAtt": [name, attribute]}:
                return f"<{name}.{attribute}>"
            case {"Fn::ImportValue": name}:
                exporter, exported = self._exports[name]
                return self._resolve(exported, exporter)
            case {"Fn::FindInMap": [name, *keys]}:
                first, second = (self._resolve(key, stack) for key in keys)
                return self._raw[stack]["Mappings"][name][first][second]
            case {"Fn::Sub": str(text)}:
                return re.sub(r"\$\{(AWS::\w+)\}", lambda found: PSEUDO[found[1]], text)
            case {"Fn::Join": [separator, parts]}:
                return separator.join(self._resolve(part, stack) for part in parts)
            case dict():
                return {key: self._resolve(item, stack) for key, item in value.items()}
            case list():
                return [self._resolve(item, stack) for item in value]
            case _:
                return value

    def _named(self, logical_id: str, stack: str) -> dict[str, str]:
        """What a reference to a resource, and to its ARN, stands for."""
        resource = self._raw[stack]["Resources"].get(logical_id, {"Type": "Parameter"})
        plain = HASH.sub("", logical_id)
        name = PHYSICAL.get(plain, f"<{plain}>")
        match resource["Type"]:
            case "AWS::S3::Bucket":
                return {"Ref": name, "Arn": f"arn:aws:s3:::{name}"}
            case "AWS::SNS::Topic":
                return {"Ref": f"arn:aws:sns:{HERE}:{name}"}
            case "AWS::SSM::Parameter":
                return {"Ref": resource["Properties"]["Name"]}
            case "AWS::Logs::LogGroup":
                group = resource["Properties"]["LogGroupName"]
                return {"Ref": group, "Arn": f"arn:aws:logs:{HERE}:log-group:{group}:*"}
            case "AWS::IAM::Role":
                return {"Ref": name, "Arn": f"arn:aws:iam::{ACCOUNT}:role/{name}"}
            case "AWS::IAM::ManagedPolicy":
                return {"Ref": f"arn:aws:iam::{ACCOUNT}:policy/{name}"}
            case "AWS::KMS::Key":
                return {"Ref": name, "Arn": f"arn:aws:kms:{HERE}:key/{name}"}
            case _:
                return {"Ref": name, "Arn": name}


class Evaluator:
    """@cloud-copilot/iam-simulate, in one Node process for many questions."""

    def __init__(self) -> None:
        self._node = subprocess.Popen(
            ["node", Path(__file__).with_name("simulate.mjs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        self._node.communicate()

    def decide(self, requests: Sequence[Request]) -> list[bool]:
        """Whether each request is allowed; raises ValueError for one that AWS could not get."""
        assert self._node.stdin and self._node.stdout
        self._node.stdin.write(json.dumps([asdict(request) for request in requests]) + "\n")
        self._node.stdin.flush()
        answers = json.loads(self._node.stdout.readline())
        wrong = [
            f"{request.action} on {request.resource}: {answer}"
            for request, answer in zip(requests, answers, strict=True)
            if answer.startswith("error")
        ]
        if wrong:
            raise ValueError("\n".join(wrong))
        return [answer == "Allowed" for answer in answers]
