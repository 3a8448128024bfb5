"""The demo's photos: a few in the public bucket, to be downloaded, the others in place."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from common.files import write_atomic
from data_prep.folder import metadata_path, photo_path

DOWNLOADED = 100  # enough to test the download; with all 6,749 moto takes one to three minutes


def lay_out(bins: Path, photos: int, *, public: Path, data: Path) -> list[str]:
    """Choose `photos` photos with 1 to 5 items, and put them where the demo finds them.

    `bins` is a folder or a tar laid out as the public bucket. The first DOWNLOADED go to `public`,
    from which the stand-in fills the public bucket, and the others to `data`, as if they had been
    downloaded. Returns the ids, which are also written to ids.txt in `public`.
    """
    metadata = dict(read_objects(bins, "metadata"))
    counts = {
        Path(key).stem: int(json.loads(content)["EXPECTED_QUANTITY"])
        for key, content in metadata.items()
    }
    chosen = sorted(photo for photo, count in counts.items() if 1 <= count <= 5)[:photos]
    places = {photo: public if n < DOWNLOADED else data for n, photo in enumerate(chosen)}
    for key, content in read_objects(bins, "bin-images"):
        photo = Path(key).stem
        if photo in places:
            write_atomic(photo_path(places[photo], photo), content)
            write_atomic(metadata_path(places[photo], photo), metadata[f"metadata/{photo}.json"])
    (public / "ids.txt").write_text("".join(f"{photo}\n" for photo in chosen))
    return chosen


def read_objects(bins: Path, folder: str) -> Iterator[tuple[str, bytes]]:
    """Key and content of each file in one folder of `bins`, which is itself a folder or a tar."""
    if bins.is_dir():
        for file in sorted((bins / folder).iterdir()):
            yield f"{folder}/{file.name}", file.read_bytes()
        return
    with tarfile.open(bins) as tar:
        for member in tar:
            key = member.name.removeprefix("./")
            content = tar.extractfile(member) if key.startswith(f"{folder}/") else None
            if content:
                yield key, content.read()
