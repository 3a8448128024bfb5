"""What a message advises about a setting holds beyond the next deploy."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.config import Config
from rehearsal.aws.stand_in import ROOT

PACKAGES = ("benchmarks", "costs", "data_prep", "infra", "rehearsal", "serving", "training")
# `-c name=…` with a setting's name, or one that is filled in, written `{}`.
PASSING = re.compile(rf"-c (?!name=value)\"?(?:\{{\}}|(?:{'|'.join(Config.model_fields)}))=")


def texts() -> Iterator[tuple[Path, str]]:
    for file in (ROOT / "app.py", *(f for name in PACKAGES for f in (ROOT / name).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Constant(value=str(text)):
                    yield file, text
                case ast.JoinedStr(values=parts):
                    yield (
                        file,
                        "".join(
                            str(getattr(part, "value", ""))
                            if isinstance(part, ast.Constant)
                            else "{}"
                            for part in parts
                        ),
                    )
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        for cell in json.loads(notebook.read_text())["cells"]:
            yield notebook, "".join(cell["source"])
    for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "infra").glob("*.sh")):
        yield file, file.read_text()


def test_no_message_advises_a_setting_for_one_command_only() -> None:
    """The README's next step, or any other deploy without `-c`, would take it back."""
    wrong = [f"{file.relative_to(ROOT)}: {text}" for file, text in texts() if PASSING.search(text)]
    assert not wrong, "name cdk.json's context instead of -c"


@pytest.mark.parametrize("text", ["cdk deploy -c purchase=on_demand", "deploy -c {}=…"])
def test_such_advice_would_be_found(text: str) -> None:
    assert PASSING.search(text)
