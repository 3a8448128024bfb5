import boto3
import pytest

from data_prep.folder import DataError
from data_prep.pack import pack
from data_prep.split import split_folder
from data_prep.synthetic import synthesize
from data_prep.upload import upload_dataset, upload_weights

TEMPLATE = """
Resources: {Bucket: {Type: "AWS::S3::Bucket", Properties: {BucketName: ours}}}
Outputs: {BucketName: {Value: ours}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    synthesize(folder, 150, 3, sides=range(64, 81), workers=1)
    split_folder(folder, range(1, 6))
    pack(folder, "bins", size=32, shard_mb=0.1, workers=1)
    pack(folder, "larger", size=40, shard_mb=0.1, workers=1)
    return folder


@pytest.fixture
def written(client, monkeypatch):
    """The list of keys that are put or deleted from now on, in order."""
    calls = []

    def spy(name):
        def record(params, **_):
            calls.append((name, params["Key"].rsplit("/", 1)[1]))

        return record

    make_client = boto3.client

    def spied_client(*arguments, **settings):
        made = make_client(*arguments, **settings)
        made.meta.events.register("provide-client-params.s3.PutObject", spy("put"))
        made.meta.events.register("provide-client-params.s3.DeleteObject", spy("delete"))
        return made

    monkeypatch.setattr(boto3, "client", spied_client)
    return calls


def stored(client, key):
    return client.get_object(Bucket="ours", Key=key)["Body"].read()


def test_the_whole_dataset_arrives_the_manifest_last(client, folder, written):
    assert upload_dataset(folder, "bins", "ours") == "s3://ours/datasets/bins/"
    files = {path.name: path.read_bytes() for path in (folder / "datasets" / "bins").glob("*.*")}
    assert {name: stored(client, f"datasets/bins/{name}") for name in files} == files
    puts = [name for call, name in written if call == "put"]
    assert sorted(puts) == sorted(files)
    assert puts[-1] == "manifest.json"


def test_what_is_there_already_is_not_sent_again(client, folder, written):
    upload_dataset(folder, "bins", "ours")
    client.delete_object(Bucket="ours", Key="datasets/bins/train-00000.tar")
    written.clear()
    upload_dataset(folder, "bins", "ours")
    assert written == [("put", "train-00000.tar")]


def test_an_object_of_the_same_size_with_other_bytes_is_replaced(client, folder):
    upload_dataset(folder, "bins", "ours")
    key = "datasets/bins/test-00000.tar"
    whole = stored(client, key)
    client.put_object(Bucket="ours", Key=key, Body=bytes(len(whole)))
    upload_dataset(folder, "bins", "ours")
    assert stored(client, key) == whole


def test_an_older_manifest_goes_before_its_shards_change(client, folder, written, tmp_path):
    upload_dataset(folder, "bins", "ours")
    written.clear()
    other = tmp_path / "datasets" / "bins"
    other.parent.mkdir()
    other.symlink_to(folder / "datasets" / "larger")
    upload_dataset(tmp_path, "bins", "ours")
    assert written[0] == ("delete", "manifest.json")
    assert written[-1] == ("put", "manifest.json")


def test_a_shard_that_is_not_the_manifest_s_is_not_uploaded(client, folder, tmp_path, written):
    dataset = tmp_path / "datasets" / "bins"
    dataset.mkdir(parents=True)
    (dataset / "manifest.json").write_bytes(
        (folder / "datasets" / "bins" / "manifest.json").read_bytes()
    )
    (dataset / "train-00000.tar").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"train-00000\.tar is not the shard"):
        upload_dataset(tmp_path, "bins", "ours")
    assert not written


def test_a_dataset_that_was_not_packed_says_what_to_run(client, tmp_path):
    with pytest.raises(DataError, match=r"pack --name bins. first"):
        upload_dataset(tmp_path, "bins", "ours")


def test_weights_go_to_their_prefix(client, tmp_path):
    file = tmp_path / "resnet50.pth"
    file.write_bytes(b"tensors")
    assert upload_weights(file, "ours") == "s3://ours/weights/resnet50.pth"
    assert stored(client, "weights/resnet50.pth") == b"tensors"
