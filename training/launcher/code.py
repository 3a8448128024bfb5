"""Packs the code that a machine needs."""

import io
import tarfile
from collections.abc import Mapping, Sequence

from common.files import ROOT

_TRAINING = (
    "common",
    "serving/container",
    "training/flags.py",
    "training/settings.py",
    "training/train.py",
    "training/learn",
    "training/evaluate",
    "training/export",
)
ON_EC2 = (*_TRAINING, "costs", "training/runs", "training/machine")
ON_SAGEMAKER = (*_TRAINING, "training/sagemaker/environment.py")
PREPARATION = ("common", "serving/container", "data_prep")
SUFFIXES = {".py", ".json", ".j2"}


def pack_code(places: Sequence[str], at_root: Mapping[str, bytes] | None = None) -> bytes:
    """Return a tar.gz of `places`, folders without their subfolders, and the files `at_root`.

    A run keeps this code whatever is deployed or edited later.
    """
    files = set()
    for place in map(ROOT.joinpath, places):
        found = [place] if place.is_file() else [f for f in place.iterdir() if f.suffix in SUFFIXES]
        packages = (parent for parent in place.relative_to(ROOT).parents if parent.name)
        files |= {*found, *(ROOT / package / "__init__.py" for package in packages)}
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for file in sorted(files):
            tar.add(file, arcname=str(file.relative_to(ROOT)))
        for name, body in (at_root or {}).items():
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return content.getvalue()
