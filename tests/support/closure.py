"""What a list of packages needs in all."""

from importlib.metadata import distribution

from packaging.requirements import Requirement


def closure(names: list[str]) -> set[str]:
    """These distributions and all that they need."""
    found: set[str] = set()
    while names:
        name = names.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for text in distribution(name).requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                names.append(requirement.name)
    return found
