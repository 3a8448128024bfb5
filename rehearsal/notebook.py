"""Run the notebook from top to bottom against the stand-in for AWS.

It sees what it would see on AWS: the stacks are deployed, SageMaker runs its jobs, a spot machine
starts when the group is set to 1, and the endpoint answers. The executed notebook is written to
.demo/notebook.ipynb.

    python -m rehearsal.notebook
    python -m rehearsal.notebook --write    # keep the outputs in notebooks/ instead
"""

import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import nbformat
from botocore.exceptions import ClientError
from cyclopts import Parameter
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from tqdm import tqdm

from common.command import interruptible
from common.files import ROOT
from common.flags import Switch, command_line
from common.outputs import NotDeployedError, stack_output
from data_prep.synthetic import synthesize
from rehearsal.aws.endpoint import hosted_endpoint
from rehearsal.aws.group import RehearsedGroups
from rehearsal.aws.ports import free_port
from rehearsal.aws.processes import CommandError, Processes
from rehearsal.aws.stand_in import CDK, StandIn
from rehearsal.aws.waiting import NotReadyError
from rehearsal.aws.wheels import pack_installed

NOTEBOOK = ROOT / "notebooks" / "inventory_monitoring.ipynb"
PHOTOS = 150
LOOK_SECONDS = 0.5
FOLDER = ROOT / ".demo"
Folder = Annotated[Path, Parameter(show_default=False)]

APP = command_line("python -m rehearsal.notebook", __doc__)
# As CloudFormation, a deploy of the endpoint ends when the endpoint is in service.
NPX = """\
#!/bin/sh
shift
{cdk} "$@" {flags} || exit
echo "$@" >> {deployed}
case "$*" in *EndpointStack*) until [ -e {in_service} ]; do sleep 0.2; done ;; esac
"""


class Cloud:
    """What AWS does while the notebook runs: a thread for the group and one for the endpoint.

    `deployed` is a file that grows with each deployment; stack outputs are read again only then.
    `in_service` is a file that exists once the endpoint answers.
    """

    def __init__(
        self,
        processes: Processes,
        stand_in: StandIn,
        folder: Path,
        port: int,
        *,
        deployed: Path,
        in_service: Path,
    ) -> None:
        self._processes, self._stand_in, self._folder = processes, stand_in, folder
        self._port, self._deployed, self._in_service = port, deployed, in_service
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=each, daemon=True) for each in (self._train, self._serve)
        ]

    def __enter__(self) -> "Cloud":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _train(self) -> None:
        """Run machines whenever the group is set to 1."""
        names = self._output("TrainStack", "GroupNames")
        if not names:
            return
        group = RehearsedGroups(
            processes=self._processes,
            endpoint=self._stand_in.endpoint,
            groups=names.split(","),
            folder=self._folder / "machines",
            say=lambda _: None,
        )
        while not self._over.wait(LOOK_SECONDS):
            if group.states()["desired"]:
                group.run(interruptions=[])

    def _serve(self) -> None:
        """Host the endpoint once it is deployed."""
        name = self._output("EndpointStack", "EndpointName")
        if not name:
            return
        disk = self._folder / "endpoint"
        try:
            with hosted_endpoint(self._processes, name, disk, runtime_port=self._port):
                self._in_service.touch()
                self._over.wait()
        finally:
            self._in_service.touch()  # nobody waits for an endpoint that did not come up

    def _output(self, stack: str, key: str) -> str | None:
        """An output of a stack once it is deployed; None if the notebook ends before."""
        deploys = 0
        while not self._over.wait(LOOK_SECONDS):
            if self._deployed.stat().st_size > deploys:
                deploys = self._deployed.stat().st_size
                with suppress(NotDeployedError, ClientError):
                    return stack_output(stack, key)
        return None


@contextmanager
def rehearsed_account(folder: Path) -> Iterator[None]:
    """Give this process the environment of a user with an empty account, the stand-in."""
    work = folder / "notebook"
    shutil.rmtree(work, ignore_errors=True)
    (work / "bin").mkdir(parents=True)
    with Processes(folder / "notebook-state") as processes:
        stand_in = StandIn(processes, work)
        port = free_port()
        os.environ.clear()
        os.environ.update(stand_in.environment)
        os.environ.update(
            {
                "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": f"http://127.0.0.1:{port}",
                "PATH": f"{work / 'bin'}{os.pathsep}{os.environ['PATH']}",
                "SPOT_FOLLOW_SECONDS": "1",
                "WHEELS": str(pack_installed("tqdm", work / "wheels").parent),
                "DATA": str(work / "data"),
                "TQDM_DISABLE": "1",  # no progress bars in the outputs that are kept
            }
        )
        synthesize(work / "public", PHOTOS, 0, sides=range(96, 129))
        stand_in.start(work / "public")
        stand_in.synthesize()
        stand_in.bootstrap()
        deployed, in_service = work / "deployed", work / "in-service"
        deployed.touch()
        npx = work / "bin" / "npx"
        flags = " ".join(stand_in.deploy_flags)
        npx.write_text(NPX.format(cdk=CDK, flags=flags, deployed=deployed, in_service=in_service))
        npx.chmod(0o755)
        with Cloud(processes, stand_in, work, port, deployed=deployed, in_service=in_service):
            yield


def run_notebook(notebook: nbformat.NotebookNode) -> None:
    """Execute all cells in place. Raises CellExecutionError at the first one that fails."""
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOK.parent)}},
    )
    with client.setup_kernel():
        cells = list(enumerate(notebook.cells))
        for number, cell in tqdm(cells, desc="notebook", unit="cell", disable=False):
            client.execute_cell(cell, number)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Remove what differs between machines, such as times and paths, as far as possible."""
    for cell in notebook.cells:
        cell.metadata = {}
        cell.id = f"cell-{notebook.cells.index(cell)}"
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


def _joined(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Join the pieces of each stream into one text."""
    streams: dict[str, nbformat.NotebookNode] = {}
    kept = []
    for output in outputs:
        if output.output_type != "stream":
            kept.append(output)
        elif output.name in streams:
            streams[output.name].text += output.text
        else:
            streams[output.name] = output
            kept.append(output)
    for stream in streams.values():
        stream.text = _plain(stream.text)
    return kept


def _plain(text: str) -> str:
    """Without colours, text that a terminal overwrites, and the folders of this machine."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    text = re.sub(r"[^\n]*\r(?!\n)", "", text)
    return text.replace(os.environ["DATA"], "data").replace(str(ROOT), ".")


@APP.default
def rehearse(*, write: Switch = False, folder: Folder = FOLDER) -> None:
    """Run the notebook.

    Parameters
    ----------
    write
        Keep the outputs in the notebook itself.
    folder
        Folder for everything that is written [default: .demo].
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    begun = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    failed = None
    with rehearsed_account(folder.resolve()):
        try:
            run_notebook(notebook)
        except CellExecutionError as error:
            failed = error
        tidy(notebook)
    kept = NOTEBOOK if write and not failed else folder / "notebook.ipynb"
    nbformat.write(notebook, kept)  # type: ignore[no-untyped-call]
    if failed:
        sys.exit(f"error: a cell failed, see {kept}:\n{str(failed)[-2000:]}")
    print(f"{kept} in {time.monotonic() - begun:.0f} s")


@interruptible()
def main(arguments: list[str] | None = None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        APP(arguments)
    except (CommandError, NotReadyError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
