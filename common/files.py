"""The root of the checkout, and atomic writes of files."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the checkout


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `file`; on success, rename it to `file`."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(file)


def write_atomic(file: Path, content: bytes) -> None:
    """Write `content` to `file`, which is complete or absent, and create missing folders."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        partial.write_bytes(content)
