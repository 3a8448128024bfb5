"""The checkout's folder, and files that are whole or absent, also when the writer is killed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the checkout


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a path to write to, in the folder of `file`; on success it becomes `file`."""
    partial = file.with_name(f".{file.name}.partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(file)


def write_atomic(file: Path, content: bytes) -> None:
    """Write `content`, and the folders above if they are missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as partial:
        partial.write_bytes(content)
