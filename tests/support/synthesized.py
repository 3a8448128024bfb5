"""The stacks as CloudFormation would get them, for tests to look into."""

import json
from pathlib import Path
from typing import Any

from common.files import ROOT

CDK_CONTEXT: dict[str, Any] = json.loads((ROOT / "cdk.json").read_text())["context"]


class Template:
    """A synthesized template, its intrinsic functions written as text like `<Id.Arn>`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw: dict[str, Any] = json.loads(path.read_text())
        self.resources: dict[str, Any] = {
            name: plain(resource) for name, resource in self.raw["Resources"].items()
        }

    def of_type(self, type: str) -> list[dict[str, Any]]:
        """The properties of every resource of `type`."""
        return [
            resource.get("Properties", {})
            for resource in self.resources.values()
            if resource["Type"] == type
        ]

    def only(self, type: str) -> dict[str, Any]:
        """The properties of the one resource of `type`."""
        (properties,) = self.of_type(type)
        return properties

    def statements(self, role: str) -> dict[str, dict[str, Any]]:
        """Sid to statement, of all policies of the role whose logical id starts with `role`."""
        documents = [
            policy["PolicyDocument"]
            for name, resource in self.resources.items()
            if resource["Type"] == "AWS::IAM::Role" and name.startswith(role)
            for policy in resource["Properties"].get("Policies", [])
        ] + [
            policy["PolicyDocument"]
            for policy in self.of_type("AWS::IAM::Policy")
            if policy["Roles"][0].startswith(f"<{role}")
        ]
        return {s["Sid"]: s for document in documents for s in document["Statement"]}

    def checkov_skips(self) -> dict[str, dict[str, str]]:
        """Logical id to what checkov is told to skip there, each with its reason."""
        return {
            name: {skip["id"]: skip["comment"] for skip in metadata["checkov"]["skip"]}
            for name, resource in self.resources.items()
            if "checkov" in (metadata := resource.get("Metadata", {}))
        }


def synthesize(folder: Path, **settings: object) -> dict[str, Template]:
    """Stack id to template, as `cdk synth -c name=value …` would write them into `folder`."""
    from aws_cdk import App  # takes seconds, and a process of Node's

    from app import add_stacks

    app = App(context=CDK_CONTEXT | settings, outdir=str(folder))
    add_stacks(app)
    app.synth()
    return {
        path.name.split(".")[0]: Template(path) for path in sorted(folder.glob("*.template.json"))
    }


def plain(value: Any) -> Any:
    """`value` with each intrinsic function written as text, `<…>` for what AWS fills in."""
    match value:
        case {"Ref": name}:
            return f"<{name}>"
        case {"Fn::GetAtt": [name, attribute]}:
            return f"<{name}.{attribute}>"
        case {"Fn::ImportValue": name}:
            return f"<{name}>"
        case {"Fn::FindInMap": [name, *_]}:
            return f"<{name}>"
        case {"Fn::Sub": text}:
            return text
        case {"Fn::Join": [separator, parts]}:
            return separator.join(plain(part) for part in parts)
        case {"Fn::Base64": text}:
            return plain(text)
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list():
            return [plain(item) for item in value]
        case _:
            return value
