"""Wheels of installed packages, which a rehearsed machine installs without a network."""

import zipfile
from importlib.metadata import distribution
from pathlib import Path


def pack_installed(name: str, folder: Path) -> Path:
    """Pack an installed package of pure Python into a wheel; returns its path.

    The format: https://packaging.python.org/specifications/binary-distribution-format
    """
    package = distribution(name)
    files = {file.as_posix(): Path(str(file.locate())) for file in package.files or []}
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{name}-{package.version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, file in files.items():
            if not path.startswith("..") and file.suffix != ".pyc":
                # A fixed date, so that the wheel has the same hash each time.
                entry = zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0))
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return wheel
