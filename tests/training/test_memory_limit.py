"""Training fits the memory of the smallest machine that it is offered, with 4 GiB."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch

from common.files import ROOT
from tests.support.packed import draw_photos, write_packed
from training.settings import ARCHITECTURES

LIMIT = 2_500_000_000  # bytes; the rest of 4 GiB is for the system, its agents, training.machine
PHOTOS = 10_000
MEMORY = Path("/sys/fs/cgroup/memory")  # version 1
UNIFIED = Path("/sys/fs/cgroup")

# As on a machine with VNNI, which makes the int8 variant, whatever this one has.
TRAIN = """
import runpy, sys
from serving.container import artifact
artifact.has_vnni = lambda: True
runpy.run_module("training.train", run_name="__main__")
"""
# Where there is no cgroup: the peak of the one process.
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
sys.exit(code or (f"the peak was {peak:,} bytes" if peak > int(LIMIT) else 0))
"""


@pytest.fixture
def limited() -> Iterator[list[str]]:
    """What to put in front of a command, so that it may have LIMIT bytes: the kernel ends what is
    above in a cgroup."""
    place, limit = (MEMORY, "memory.limit_in_bytes") if MEMORY.is_dir() else (UNIFIED, "memory.max")
    group = place / f"bin-counter-{uuid.uuid4().hex}"
    try:
        group.mkdir()
        (group / limit).write_text(str(LIMIT))
    except OSError:  # not root, or no memory controller
        if group.is_dir():
            group.rmdir()
        yield [sys.executable, "-c", MEASURED.replace("LIMIT", repr(str(LIMIT)))]
        return
    yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    group.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_ten_thousand_photos_and_both_exports_fit_the_smallest_machine(
    arch: str, limited: list[str], tmp_path: Path
) -> None:
    train = int(PHOTOS * 0.8)
    photos = draw_photos(PHOTOS)
    data = write_packed(
        tmp_path / "data", photos[:train], photos[train:], photos_a_shard=2000, size=224
    )
    weights = tmp_path / f"{arch}.pth"
    network = timm.create_model(ARCHITECTURES[arch].timm_name, pretrained=False)
    torch.save(network.state_dict(), weights)
    words = ["--data", data, "--weights", weights, "--output", tmp_path / "run", "--arch", arch]
    ended = subprocess.run(
        [*limited, sys.executable, "-c", TRAIN, *map(str, words), "--threads", "2"],
        cwd=ROOT,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "model-int8" in ended.stderr, "the int8 variant was judged"
