"""Compare a packed data set with its manifest."""

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from tqdm import tqdm

from common.dataset import Side, read_photos
from common.outputs import check_region
from data_prep.folder import dataset_path, read_json
from data_prep.processes import process_pool
from data_prep.split import SIDES
from data_prep.upload import stored
from serving.container.preprocess import PhotoError, size_of, to_pixels


@dataclass
class Found:
    """The content of a shard, and the problems with it."""

    file: str
    problems: list[str] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    groups: set[str] = field(default_factory=set)
    products: int = 0


def verify_folder(folder: Path, name: str, workers: int | None = None) -> list[str]:
    """Read every byte of `<folder>/datasets/<name>/`; returns the problems, one line each.

    Checks hashes, the number of photos of each count, duplicate ids, photos that cannot be decoded
    or have another size, groups on both sides, and the lists. Raises DataError without a manifest.
    """
    dataset = dataset_path(folder, name)
    manifest = read_json(
        dataset / "manifest.json", f"run `python -m data_prep pack --name {name}` first"
    )
    shards = [(side, shard) for side in SIDES for shard in manifest["shards"][side]]
    look = partial(look_at_shard, dataset, size=manifest["size"])
    with process_pool(workers) as pool:
        looks = pool.map(look, [shard for _, shard in shards])
        found = list(tqdm(looks, total=len(shards), desc="verify", unit=" shards"))
    problems = [problem for one in found for problem in one.problems]
    by_side = {
        side: [one for (its, _), one in zip(shards, found, strict=True) if its == side]
        for side in SIDES
    }
    problems += _compare_sides(manifest, by_side)
    problems += _compare_lists(dataset, by_side)
    products, listed = (
        sum(one.products for one in found),
        manifest.get("products", {}).get("products", 0),
    )
    if products != listed:
        problems.append(f"there are {products} products, the manifest says {listed}")
    return problems


def look_at_shard(dataset: Path, shard: dict[str, Any], size: int) -> Found:
    """Read one shard and check it by itself."""
    found = Found(shard["file"])
    try:
        content = (dataset / shard["file"]).read_bytes()
    except FileNotFoundError:
        found.problems.append(f"{shard['file']} is missing")
        return found
    if hashlib.sha256(content).hexdigest() != shard["sha256"]:
        found.problems.append(f"{shard['file']} does not have the hash in the manifest")
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for photo in read_photos(tar):
                found.ids.append(photo.id)
                found.counts[photo.count] += 1
                found.groups.add(photo.group)
                found.products += len(photo.products)
                found.problems += _look_at_photo(found.file, photo.id, photo.jpeg, size)
    except (tarfile.TarError, ValueError, KeyError) as error:
        found.problems.append(f"{shard['file']} cannot be read: {error}")
    if len(found.ids) != shard["photos"]:
        found.problems.append(
            f"{shard['file']} has {len(found.ids)} photos, the manifest says {shard['photos']}"
        )
    return found


def _look_at_photo(file: str, photo_id: str, jpeg: bytes, size: int) -> Iterator[str]:
    try:
        to_pixels(jpeg, size)
        if size_of(jpeg) != (size, size):
            yield f"{file}: photo {photo_id} is not of {size} × {size} pixels"
    except PhotoError as error:
        yield f"{file}: photo {photo_id} cannot be decoded: {error}"


def _compare_sides(manifest: dict[str, Any], by_side: dict[Side, list[Found]]) -> Iterator[str]:
    for side, found in by_side.items():
        counts = sum((one.counts for one in found), Counter())
        listed = Counter({int(count): n for count, n in manifest["photos"][side].items()})
        if counts != listed:
            yield (
                f"{side}: the photos by count are {dict(sorted(counts.items()))}, the manifest "
                f"says {dict(listed)}"
            )
    ids = Counter(photo_id for found in by_side.values() for one in found for photo_id in one.ids)
    for photo_id, times in ids.items():
        if times > 1:
            yield f"photo {photo_id} is in the data set {times} times"
    if manifest["split"]["method"] == "group":
        train, test = (set().union(*(one.groups for one in by_side[side])) for side in SIDES)
        if both := train & test:
            yield f"groups on both sides: {len(both)}, such as {min(both)}"


def _compare_lists(dataset: Path, by_side: dict[Side, list[Found]]) -> Iterator[str]:
    for side, found in by_side.items():
        file = dataset / f"{side}_list.json"
        names = read_json(file, "run `python -m data_prep pack` again")
        listed = sorted(Path(name).stem for listed in names.values() for name in listed)
        if listed != sorted(photo_id for one in found for photo_id in one.ids):
            yield f"{file.name} does not list the photos that the shards hold"


def verify_bucket(bucket: str, name: str) -> list[str]:
    """Compare the sizes and the hashes of the objects under `datasets/<name>/` with the manifest.

    The hashes are those that `upload` stored with the objects. Returns the problems, one line
    each. Raises RegionsDifferError.
    """
    check_region()
    client, prefix = boto3.client("s3"), f"datasets/{name}"
    manifest = json.loads(
        client.get_object(Bucket=bucket, Key=f"{prefix}/manifest.json")["Body"].read()
    )
    problems = []
    for side in SIDES:
        for shard in tqdm(manifest["shards"][side], desc=f"verify {side}", unit=" shards"):
            key = f"{prefix}/{shard['file']}"
            found = stored(client, bucket, key)
            if found is None:
                problems.append(f"s3://{bucket}/{key} is missing, or you may not read it")
            elif found != (shard["bytes"], shard["sha256"]):
                problems.append(f"s3://{bucket}/{key} is not the shard that the manifest describes")
    return problems
