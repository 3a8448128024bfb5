"""The serving image, built from its Dockerfile by buildah and run as SageMaker runs it.

`make test-image`. There is no Docker here, so the base image is a Debian with the same minor
version of Python, under the base image's name.
"""

import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.files import ROOT
from rehearsal.aws.ports import free_port
from rehearsal.aws.waiting import wait_until
from serving.image_check import DOCKER
from tests.support.debian import install_debian, need_root_and, run
from tests.support.tiny_model import grey_photo, write_tiny_model

SERVING = ROOT / "serving" / "container"
# SageMaker mounts the model and lets a container write to /tmp; what else it writes is gone.
RUN = """
set -e
mount --bind "$ROOT" "$ROOT"
mount -o remount,ro,bind "$ROOT"
mount -t proc proc "$ROOT/proc"
mount --rbind /dev "$ROOT/dev"
mount -t tmpfs tmpfs "$ROOT/tmp"
mount --bind "$MODEL" "$ROOT/opt/ml/model"
! touch "$ROOT/written" 2> /dev/null
exec chroot "$ROOT" env -i "$@"
"""


@dataclass
class Image:
    """A built image, unpacked."""

    root: Path
    manifest: Any
    config: Any


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    need_root_and(buildah="buildah", debootstrap="debootstrap", unshare="util-linux")
    folder = tmp_path_factory.mktemp("image")
    store = ("--root", str(folder / "store"), "--runroot", str(folder / "run"))

    def buildah(*words: str | Path) -> str:
        return run("buildah", "--storage-driver", "vfs", *store, *words)

    import_base(folder / "base", buildah)
    buildah(
        *("build", "--isolation", "chroot", "--format", "docker", "--pull-never"),
        *("--network", "host", "--volume", "/etc/ssl/certs:/etc/ssl/certs:ro"),
        *("--tag", "bin-counter", SERVING),
    )
    buildah("push", "bin-counter", f"dir:{folder / 'pushed'}")
    container = buildah("from", "--pull-never", "bin-counter")
    root = Path(buildah("mount", container))
    (root / "opt/ml/model").mkdir(parents=True)
    described = json.loads(buildah("inspect", "--type", "image", "bin-counter"))
    yield Image(
        root=root,
        manifest=json.loads((folder / "pushed" / "manifest.json").read_text()),
        config=described["Docker"]["config"],
    )
    buildah("rm", container)
    shutil.rmtree(folder)


def import_base(root: Path, buildah: Any) -> None:
    """Debian with Python and pip, as the image that the Dockerfile begins with."""
    (name,) = re.findall(r"^FROM (\S+)", (SERVING / "Dockerfile").read_text(), re.MULTILINE)
    install_debian(root, "python3", "python3-pip", "ca-certificates")
    for file in root.glob("usr/lib/python3.*/EXTERNALLY-MANAGED"):
        file.unlink()  # python's own image lets pip install
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")  # and it has this name
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, root, "/")
    buildah("commit", "--quiet", "--format", "docker", container, f"docker.io/library/{name}")
    buildah("rm", container)


@pytest.mark.slow
def test_the_image_is_in_the_format_that_sagemaker_takes(image: Image) -> None:
    assert image.manifest["mediaType"] == DOCKER
    parts = [image.manifest["config"], *image.manifest["layers"]]
    assert all(part["mediaType"].startswith("application/vnd.docker.") for part in parts)
    assert image.config.get("User", "") == "", "root"
    labels = image.config["Labels"]
    assert labels["com.amazonaws.sagemaker.capabilities.accept-bind-to-port"] == "true"


@pytest.mark.slow
def test_it_answers_a_photo_as_root_with_a_model_that_root_alone_may_read(
    image: Image, tmp_path: Path
) -> None:
    model = write_tiny_model(tmp_path / "model")
    for file in (model, *model.iterdir()):
        file.chmod(0o700 if file.is_dir() else 0o600)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    given = [f"SAGEMAKER_BIND_TO_PORT={port}", "SERVING_HOST=127.0.0.1"]
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        process = psutil.Popen(
            [
                *("unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", RUN, "sh"),
                *(*image.config["Env"], *given, "serve"),
            ],
            env={**os.environ, "ROOT": str(image.root), "MODEL": str(model)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: answers(f"{url}/ping"), process, name="serve", log=log)
        request = urllib.request.Request(
            f"{url}/invocations", grey_photo(4), {"Content-Type": "image/jpeg"}
        )
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["count"] == 4
    finally:
        process.kill()  # unshare ignores SIGTERM; the child goes with it
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url) as answer:
            return int(answer.status) == 200
    except OSError:
        return False
