"""What the documents name is there."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from common.files import ROOT

DOCUMENTS = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*/README.md")]
ALL = [*DOCUMENTS, *ROOT.glob("notebooks/*.ipynb")]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
COMMAND = re.compile(r"python -m ([\w.]+)")
OF_COMMITS = {
    "benchmarks.jpeg_quality",
    "benchmarks.photo_shape",
    "benchmarks.serving.accuracy",
}  # said to be of an earlier one


def anchors(document: Path) -> set[str]:
    """GitHub's names of the headings."""
    words = (heading.lower() for heading in HEADING.findall(document.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in words}


@pytest.mark.parametrize("document", ALL, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert document.read_text().strip()
    for link in LINK.findall(document.read_text()):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", ALL, ids=lambda file: str(file.relative_to(ROOT)))
def test_commands_are_there(document: Path) -> None:
    for module in set(COMMAND.findall(document.read_text())) - OF_COMMITS:
        found = find_spec(module)
        assert found, module
        assert not found.submodule_search_locations or find_spec(f"{module}.__main__"), module


def test_every_page_is_reachable_from_the_readme() -> None:
    linked = LINK.findall((ROOT / "README.md").read_text())
    pages = {str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*.md")}
    assert pages <= {link.partition("#")[0] for link in linked}


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180
