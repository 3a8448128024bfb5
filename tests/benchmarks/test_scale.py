"""The server that stands for S3, and both ways to download from it."""

from functools import partial
from pathlib import Path

import pytest

from benchmarks.measure import run_alone
from benchmarks.scale import object_server, transfer
from benchmarks.scale.object_server import serve


@pytest.mark.parametrize("way", [transfer.ours, transfer.aws_sync])
def test_all_objects_arrive_through_a_listing_of_several_pages(
    way: transfer.Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_server, "PAGE", 3)
    objects = {f"bin-images/{number}.jpg": bytes(10) for number in range(7)}
    with serve(objects, latency=0.001) as endpoint:
        found = run_alone(partial(transfer.download, way, list(objects), 10, endpoint))
    assert found.photos == 7


def test_objects_that_are_not_all_there_are_told(tmp_path: Path) -> None:
    with (
        serve({"bin-images/0.jpg": bytes(10)}, latency=0) as endpoint,
        pytest.raises(transfer.BenchmarkError, match="1 of 2 objects arrived"),
    ):
        wanted = ["bin-images/0.jpg", "bin-images/1.jpg"]
        run_alone(partial(transfer.download, transfer.aws_sync, wanted, 10, endpoint))
