"""The servers, ours and others: how each is installed, started and stopped."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions
from pathlib import Path
from sysconfig import get_path

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.serving.load import Connection, Target
from benchmarks.serving.models import Models, pack_torchserve
from benchmarks.training.measure import BenchmarkError
from common.files import ROOT

REQUIREMENTS = Path(__file__).with_name("rivals.txt")
RIVALS = Path(sys.prefix) / "rivals"  # a virtual environment in ours
START_SECONDS = 180
STOP_SECONDS = 30
# No CPU needs them; the CPU builds of PyTorch come without.
CUDA = re.compile("cuda|nvidia|triton|nvrtc|cupti|cudnn|cublas|nccl|nvshmem|cufile|cusparse")
EAGER = ("torch", "torchvision", "pillow")
TORCHSERVE_CONFIG = """
inference_address=http://127.0.0.1:{port}
management_address=http://127.0.0.1:{management}
metrics_address=http://127.0.0.1:{metrics}
disable_token_authorization=true
disable_system_metrics=true
"""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server of one model, not yet running."""

    name: str
    command: Sequence[str]
    target: Target
    packages: Sequence[str]  # that it is installed from
    environment: Mapping[str, str] = field(default_factory=dict)
    besides: Sequence[Path] = ()  # folders that it needs as well


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that has answered."""

    process: psutil.Process
    first_answer: float  # seconds after it was started

    def megabytes(self) -> float:
        """The proportional set size of the process and all its children."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(float(each.memory_full_info().pss) for each in processes) / 1e6


def install_rivals() -> None:
    """A virtual environment of the others, which finds PyTorch in ours; once."""
    installed, wanted = RIVALS / "installed.txt", REQUIREMENTS.read_text()
    if installed.exists() and installed.read_text() == wanted:
        return
    print(f"installing {REQUIREMENTS.name} in {RIVALS}", file=sys.stderr)
    shutil.rmtree(RIVALS, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", RIVALS], check=True)
    (rival_packages() / "project.pth").write_text(get_path("purelib"))
    # captum asks for an older PyTorch, and does nothing here but being imported.
    pins = [line.partition("#")[0].strip() for line in wanted.splitlines()]
    captum = [pin for pin in pins if pin.startswith("captum")]
    others = [pin for pin in pins if pin and pin not in captum]
    for needed in ([*others], ["--no-deps", *captum]):
        python = str(RIVALS / "bin" / "python")
        command = [python, "-m", "pip", "install", "--quiet", *needed]
        if subprocess.run(command).returncode:
            raise BenchmarkError("pip could not install the other servers, see its message above")
    installed.write_text(wanted)


def rival_packages() -> Path:
    (found,) = (RIVALS / "lib").glob("python*/site-packages")
    return found


def ours(models: Models, name: str, *flags: str, python: Path | str = sys.executable) -> Server:
    port = free_port()
    pins = (ROOT / "serving" / "container" / "requirements.txt").read_text()
    return Server(
        name=name,
        command=[
            *(str(python), "-m", "serving.container.server", "--model", str(models.folder)),
            *("--port", str(port), *flags),
        ],
        target=Target(port, "/invocations"),
        packages=re.findall(r"^([\w-]+)==", pins, re.MULTILINE),
        besides=[ROOT / "serving" / "container"],
    )


def torchserve(models: Models, folder: Path, name: str, **environment: str) -> Server:
    """TorchServe as it comes: its own image classifier, as many workers as there are cores."""
    java = shutil.which("java")
    if not java:
        raise BenchmarkError("TorchServe needs Java: apt-get install openjdk-17-jre-headless")
    store, config = folder / "store", folder / f"{name}.properties"
    if not store.exists():
        pack_torchserve(RIVALS / "bin" / "torch-model-archiver", models.weights, store)
    port, management, metrics = free_port(), free_port(), free_port()
    config.write_text(TORCHSERVE_CONFIG.format(port=port, management=management, metrics=metrics))
    return Server(
        name=name,
        command=[
            *(str(RIVALS / "bin" / "torchserve"), "--start", "--foreground", "--ncs"),
            *("--disable-token-auth", "--ts-config", str(config)),
            *("--model-store", str(store), "--models", "m=m.mar"),
        ],
        target=Target(port, "/predictions/m"),
        packages=("torchserve", "captum", *EAGER),
        environment={
            "LOG_LOCATION": str(folder / "logs"),
            "METRICS_LOCATION": str(folder / "logs"),
            **environment,
        },
        besides=[Path(java).resolve().parent.parent],
    )


def plain(models: Models, name: str, framework: str, packages: Sequence[str]) -> Server:
    """One of benchmarks.serving.rivals."""
    port = free_port()
    return Server(
        name=name,
        command=[
            *(str(RIVALS / "bin" / "python"), "-m", "benchmarks.serving.rivals", framework),
            *(str(models.weights), "--port", str(port)),
        ],
        target=Target(port, "/predict"),
        packages=(*packages, *EAGER),
        environment={"RAY_USAGE_STATS_ENABLED": "0"},
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def running(server: Server, photo: bytes, log: Path) -> Iterator[Running]:
    """Start a server and wait for its answer to `photo`; at the end stop all it has started."""
    begun = time.perf_counter()
    path = f"{RIVALS / 'bin'}:{os.environ['PATH']}"
    with (
        log.open("wb") as stream,
        subprocess.Popen(
            server.command,
            stdout=stream,
            stderr=stream,
            cwd=ROOT,
            env={**os.environ, "PATH": path, **server.environment},
            start_new_session=True,
        ) as started,
    ):
        process = psutil.Process(started.pid)
        try:
            wait_for_answer(server, started, photo, log)
            yield Running(process=process, first_answer=time.perf_counter() - begun)
        finally:
            stop(process)


def wait_for_answer(
    server: Server, started: "subprocess.Popen[bytes]", photo: bytes, log: Path
) -> None:
    """Ask again and again. Raises BenchmarkError when the server ends or takes too long."""
    deadline = time.perf_counter() + START_SECONDS
    while time.perf_counter() < deadline:
        try:
            with closing(Connection(server.target)) as connection:
                return connection.send(photo)
        except (OSError, BenchmarkError):
            time.sleep(0.02)
        if started.poll() is not None:
            break
    end = log.read_text(errors="replace")[-2000:]
    raise BenchmarkError(f"{server.name} does not answer: {end}")


def stop(process: psutil.Process) -> None:
    """Ask it to end, and end what is left of it and of its children."""
    children = []
    with suppress(psutil.NoSuchProcess):  # it has ended by itself
        children = process.children(recursive=True)
        process.terminate()
    _, left = psutil.wait_procs([process, *children], timeout=STOP_SECONDS)
    for each in left:
        each.kill()
    psutil.wait_procs(left, timeout=STOP_SECONDS)


def installed_megabytes(server: Server) -> float:
    """What its packages, all that they need and its folders take on disk, without CUDA, compiled
    Python and Python itself."""
    sites = [get_path("purelib")]
    if RIVALS.exists():
        sites.append(str(rival_packages()))
    known: dict[str, Distribution] = {
        canonicalize_name(found.metadata["Name"]): found for found in distributions(path=sites)
    }
    files = [
        Path(str(file.locate()))
        for name in closure(server.packages, known)
        for file in known[name].files or []
        if not CUDA.search(file.name)
    ]
    files += [file for folder in server.besides for file in folder.rglob("*")]
    return (
        sum(
            file.stat().st_size
            for file in files
            if file.is_file() and not file.is_symlink() and file.suffix != ".pyc"
        )
        / 1e6
    )


def closure(names: Iterable[str], known: Mapping[str, Distribution]) -> set[str]:
    """`names` and all that they require, as far as it is installed and no part of CUDA."""
    found: set[str] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        requirement = waiting.pop()
        name: str = canonicalize_name(requirement.name)
        if name in found or name not in known or CUDA.search(name):
            continue
        found.add(name)
        for text in known[name].requires or []:
            needed = Requirement(text)
            extras = [{"extra": extra} for extra in requirement.extras] or [{"extra": ""}]
            if needed.marker is None or any(needed.marker.evaluate(each) for each in extras):
                waiting.append(needed)
    return found
