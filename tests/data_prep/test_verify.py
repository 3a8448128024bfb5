"""A packed data set that differs from its manifest is detected."""

import json
import shutil

import pytest

from data_prep.pack import pack
from data_prep.split import split_folder
from data_prep.synthetic import synthesize
from data_prep.upload import upload_dataset
from data_prep.verify import verify_bucket, verify_folder


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    synthesize(folder, 120, 3, sides=range(64, 81), workers=1)
    split_folder(folder, range(1, 6))
    pack(folder, "bins", size=32, shard_mb=0.1, workers=1)
    return folder


@pytest.fixture
def folder(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "data")


def dataset(folder):
    return folder / "datasets" / "bins"


def change_manifest(folder, change):
    file = dataset(folder) / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))


def test_a_whole_data_set_has_no_problems(folder):
    assert verify_folder(folder, "bins", workers=1) == []


def test_a_byte_that_was_changed_is_found(folder):
    shard = dataset(folder) / "train-00000.tar"
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    problems = verify_folder(folder, "bins", workers=1)
    assert "train-00000.tar does not have the hash in the manifest" in problems


def test_a_shard_that_is_cut_off_or_gone_is_found(folder):
    shard = dataset(folder) / "train-00000.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    (dataset(folder) / "test-00000.tar").unlink()
    problems = "\n".join(verify_folder(folder, "bins", workers=1))
    assert "test-00000.tar is missing" in problems
    assert "train-00000.tar has" in problems


def test_counts_that_are_not_those_of_the_shards_are_found(folder):
    change_manifest(folder, lambda manifest: manifest["photos"]["test"].update({"3": 999}))
    (problem,) = verify_folder(folder, "bins", workers=1)
    assert problem.startswith("test: ")
    assert "999" in problem


def test_products_that_are_not_those_of_the_manifest_are_found(folder):
    change_manifest(folder, lambda manifest: manifest["products"].update(products=7))
    (problem,) = verify_folder(folder, "bins", workers=1)
    assert problem.endswith("products, the manifest says 7")


def test_a_manifest_without_products_is_no_traceback(folder):
    change_manifest(folder, lambda manifest: manifest.pop("products"))
    (problem,) = verify_folder(folder, "bins", workers=1)
    assert problem.endswith("products, the manifest says 0")


def test_photos_of_another_size_are_found(folder):
    change_manifest(folder, lambda manifest: manifest.update(size=48))
    problems = verify_folder(folder, "bins", workers=1)
    assert problems
    assert all(problem.endswith("is not of 48 × 48 pixels") for problem in problems)


def test_a_shard_that_is_there_twice_leaks(folder):
    def repeat(manifest):
        manifest["shards"]["test"] += manifest["shards"]["train"][:1]

    change_manifest(folder, repeat)
    problems = "\n".join(verify_folder(folder, "bins", workers=1))
    assert "is in the data set 2 times" in problems
    assert "groups on both sides" in problems


def test_a_list_of_other_photos_is_found(folder):
    file = dataset(folder) / "test_list.json"
    names = json.loads(file.read_text())
    names["3"] = [*names["3"], "data/metadata/77.json"]
    file.write_text(json.dumps(names))
    assert verify_folder(folder, "bins", workers=1) == [
        "test_list.json does not list the photos that the shards hold"
    ]


def test_a_data_set_in_a_bucket_is_compared_with_its_manifest(client, folder):
    upload_dataset(folder, "bins", "ours")
    assert verify_bucket("ours", "bins") == []
    client.put_object(Bucket="ours", Key="datasets/bins/train-00000.tar", Body=b"other")
    client.delete_object(Bucket="ours", Key="datasets/bins/test-00000.tar")
    problems = verify_bucket("ours", "bins")
    assert problems[0].startswith("s3://ours/datasets/bins/train-00000.tar is not the shard")
    assert problems[1].startswith("s3://ours/datasets/bins/test-00000.tar is missing")
