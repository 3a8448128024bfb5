"""Memory of a server under many mixed requests: it does not grow with their number."""

import base64
import http.client
import io
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.serving.models import make_model
from common.files import ROOT
from serving.container.application import MAX_BODY
from tests.support.tiny_model import grey_photo

CLIENTS = 8
EARLY, LATE = 1_000, 10_000  # requests


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[psutil.Process, int]]:
    """A server of ResNet50, in int8 where the CPU can, and its port."""
    model = make_model(tmp_path, [body for _, body in mixed_requests()[:16]])
    with subprocess.Popen(
        [sys.executable, "-m", "serving.container.server", "--model", str(model), "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stdout
        port = int(json.loads(started.stdout.readline())["listening"].rpartition(":")[2])
        log = threading.Thread(target=started.stdout.read)  # else the pipe fills
        log.start()
        yield psutil.Process(started.pid), port
        started.terminate()
        log.join()


def mixed_requests() -> list[tuple[str, bytes]]:
    """Content types and bodies, good and bad, small and as large as a request may be."""
    generator = np.random.default_rng(0)

    def photo(width: int, height: int, form: str, mode: str = "RGB") -> bytes:
        noise = generator.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((width, height)).convert(mode).save(buffer, form)
        return buffer.getvalue()

    good = [photo(width, 600, "JPEG") for width in range(300, 870, 30)]
    listed = [
        json.dumps([base64.b64encode(one).decode() for one in good[:number]]).encode()
        for number in range(1, 9)
    ]
    pixels = json.dumps(generator.integers(0, 256, (60, 80, 3)).tolist()).encode()
    return [
        *(("image/jpeg", one) for one in good),
        *(("image/jpeg", grey_photo(number)) for number in range(1, 6)),
        ("image/jpeg", photo(4_000, 3_000, "JPEG")),  # of a phone
        ("image/jpeg", photo(640, 480, "JPEG", "CMYK")),
        ("image/png", photo(640, 480, "PNG")),
        ("image/png", photo(640, 480, "PNG", "P")),
        ("image/png", photo(30_000, 8, "PNG")),
        *(("application/json", several) for several in listed),
        ("application/json", pixels),
        ("application/json", b"[" * 100_000),
        ("application/json", b"{"),
        ("image/jpeg", good[0][:5_000]),
        ("image/jpeg", bytes(7_000_000)),
        ("image/jpeg", bytes(MAX_BODY)),
        ("image/jpeg", b""),
        ("text/html", good[1]),
    ]


def send(port: int, requests: list[tuple[str, bytes]], number: int) -> None:
    """So many requests, drawn from `requests`, over CLIENTS connections at once."""
    numbers = count()
    statuses: Counter[int] = Counter()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while (this := next(numbers)) < number:
            content_type, body = random.Random(this).choice(requests)
            try:
                connection.request("POST", "/invocations", body, {"Content-Type": content_type})
                response = connection.getresponse()
                response.read()
                statuses[response.status] += 1
            except (ConnectionError, http.client.HTTPException):
                assert len(body) > MAX_BODY  # refused before the whole body had been sent
                connection.close()
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200, 400, 413, 415}
    assert statuses[200] > 0.6 * number


@pytest.mark.slow
def test_memory_after_ten_thousand_requests_is_that_after_one_thousand(
    server: tuple[psutil.Process, int],
) -> None:
    process, port = server
    requests = mixed_requests()
    send(port, requests, EARLY)
    early = process.memory_full_info().pss
    send(port, requests, LATE - EARLY)
    late = process.memory_full_info().pss
    assert late <= 1.05 * early
