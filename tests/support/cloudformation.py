"""How CloudFormation changes resources at a deploy, by its own schemas of them.

moto replaces a resource in place and follows no reference to what was replaced. Here a changed
property that the schema (cfn-lint's copy of CloudFormation's) calls create-only makes a new
resource, what refers to it follows, and the old one goes last: two of one name clash in between.
"""

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from cfnlint.schema.manager import PROVIDER_SCHEMA_MANAGER

# Type to the property that names a resource; without it CloudFormation makes a name up.
NAMES = {
    "AWS::ApplicationAutoScaling::ScalableTarget": "ResourceId",
    "AWS::CloudWatch::Alarm": "AlarmName",
    "AWS::SageMaker::Endpoint": "EndpointName",
    "AWS::SageMaker::EndpointConfig": "EndpointConfigName",
    "AWS::SageMaker::Model": "ModelName",
}


class NameClashError(RuntimeError):
    """There is a resource of that type and name already."""


class RefusedError(RuntimeError):
    """SageMaker does not make such a change to an endpoint."""


@dataclass
class DeployedStack:
    """The resources of NAMES' types; `resources` has type and name → properties."""

    resources: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    _logical: dict[str, tuple[str, str]] = field(default_factory=dict)
    _numbers: Any = field(default_factory=itertools.count)

    def deploy(self, template: dict[str, Any], **parameters: str) -> None:
        """Create, update and replace, then delete what is no longer needed."""
        before, self._logical = self._logical, {}
        left = {k: r for k, r in template["Resources"].items() if r["Type"] in NAMES}
        while left:
            ready = [k for k, r in left.items() if not _needs(r) & left.keys()]
            for logical_id in ready:
                resource = left.pop(logical_id)
                properties = self._resolve(resource.get("Properties", {}), parameters)
                old = before.get(logical_id)
                self._logical[logical_id] = self._apply(resource["Type"], properties, old)
        for key in set(before.values()) - set(self._logical.values()):
            del self.resources[key]

    def only(self, type: str) -> dict[str, Any]:
        """The properties of the one resource of a type such as `SageMaker::Endpoint`."""
        (found,) = (p for (t, _), p in self.resources.items() if t == f"AWS::{type}")
        return found

    def _apply(
        self, type: str, properties: dict[str, Any], old: tuple[str, str] | None
    ) -> tuple[str, str]:
        if old and not self._replaced(type, self.resources[old], properties):
            if type == "AWS::SageMaker::Endpoint":
                self._check_endpoint(self.resources[old], properties)
            self.resources[old] = properties
            return old
        name = properties.get(NAMES[type]) or f"made-up-{next(self._numbers)}"
        if (type, name) in self.resources:
            raise NameClashError(f"{type} {name} already exists")
        self.resources[type, name] = properties
        return type, name

    def _replaced(self, type: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
        schema = PROVIDER_SCHEMA_MANAGER.get_resource_schema("us-east-1", type).schema
        names = [path.split("/")[2] for path in schema["createOnlyProperties"]]
        return any(old.get(name) != new.get(name) for name in names)

    def _check_endpoint(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """An endpoint stays serverless, or on machines; while it scales, of one type."""
        before, after = (
            self.resources["AWS::SageMaker::EndpointConfig", e["EndpointConfigName"]]
            for e in (old, new)
        )
        (one,), (other,) = before["ProductionVariants"], after["ProductionVariants"]
        if ("ServerlessConfig" in one) != ("ServerlessConfig" in other):
            raise RefusedError("from serverless to machines or back")
        scales = any(type.endswith("ScalableTarget") for type, _ in self.resources)
        if scales and one.get("InstanceType") != other.get("InstanceType"):
            raise RefusedError("another type of machine while the endpoint scales")

    def _resolve(self, value: Any, parameters: dict[str, str]) -> Any:
        match value:
            case {"Ref": name} if name in parameters:
                return parameters[name]
            case {"Ref": name} | {"Fn::GetAtt": [name, _]} if name in self._logical:
                return self._logical[name][1]
            case {"Fn::Join": [separator, parts]}:
                return separator.join(str(self._resolve(part, parameters)) for part in parts)
            case {"Ref": _} | {"Fn::GetAtt": _} | {"Fn::ImportValue": _} | {"Fn::Sub": _}:
                return json.dumps(value)  # something else, which stays as it is
            case dict():
                return {key: self._resolve(item, parameters) for key, item in value.items()}
            case list():
                return [self._resolve(item, parameters) for item in value]
            case _:
                return value


def _needs(resource: dict[str, Any]) -> set[str]:
    """Logical ids that a resource refers to or waits for."""

    def walk(value: Any) -> set[str]:
        match value:
            case {"Ref": str(name)} | {"Fn::GetAtt": [str(name), _]}:
                return {name}
            case dict():
                return set().union(*map(walk, value.values()))
            case list():
                return set().union(*map(walk, value))
            case _:
                return set()

    return walk(resource.get("Properties", {})) | set(resource.get("DependsOn", []))
