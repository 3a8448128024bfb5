"""Every action and condition key of every policy is one that AWS documents: IAM takes any other
without a word, and it never matches."""

import json
import subprocess
from typing import Any

import pytest

from common.files import ROOT
from tests.support.policies import Deployed
from tests.support.synthesized import Template

PROGRAM = ROOT / "tests" / "support" / "unknown_words.mjs"


def unknown_words(statements: list[Any]) -> list[str]:
    done = subprocess.run(
        ["node", PROGRAM], input=json.dumps(statements), capture_output=True, text=True, check=True
    )
    found: list[str] = json.loads(done.stdout)
    return found


def statements_of(stacks: dict[str, Template]) -> list[Any]:
    """Of every policy of the stacks: what roles may do, who may take them, who may use what."""
    deployed = Deployed(stacks)
    documents = [
        *deployed.role_policies().values(),
        *deployed.resource_policies().values(),
        *(role["AssumeRolePolicyDocument"] for role in deployed.of_type("AWS::IAM::Role").values()),
        *(
            policy["PolicyDocument"]
            for policy in deployed.of_type("AWS::IAM::ManagedPolicy").values()
        ),
    ]
    return [statement for document in documents for statement in document["Statement"]]


def test_aws_documents_every_word_of_every_policy(
    stacks: dict[str, Template], other_stacks: dict[str, Template]
) -> None:
    for kind in (stacks, other_stacks):
        statements = statements_of(kind)
        assert len(statements) > 30
        assert unknown_words(statements) == []


@pytest.mark.parametrize(
    ("actions", "condition", "unknown"),
    [
        (["s3:GetObject"], {}, []),
        (["s3:GetObjekt"], {}, ["s3:GetObjekt"]),
        (["s4:GetObject"], {}, ["s4:GetObject"]),
        (["sagemaker:Create*"], {}, []),
        (["sagemaker:Kreate*"], {}, ["sagemaker:Kreate*"]),
        (["s3:ListBucket"], {"StringLike": {"s3:prefix": "a"}}, []),
        (["s3:GetObject"], {"StringLike": {"s3:prefix": "a"}}, ["s3:prefix of GetObject"]),
        (["s3:GetObject"], {"Bool": {"aws:SecureTransport": "true"}}, []),
        (
            ["s3:GetObject"],
            {"Bool": {"aws:SafeTransport": "true"}},
            ["aws:SafeTransport of GetObject"],
        ),
    ],
)
def test_an_unknown_word_is_found(actions: list[str], condition: Any, unknown: list[str]) -> None:
    assert unknown_words([{"Action": actions, "Condition": condition}]) == unknown
