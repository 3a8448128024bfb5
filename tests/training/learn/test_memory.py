import subprocess
import sys

import pytest

SCRIPT = """
import resource
from training.learn.memory import keep_freed_memory
if {kept}:
    keep_freed_memory()
import numpy as np
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    np.ones(10_000_000)
before = faults()
for _ in range(10):
    np.ones(10_000_000)
print(faults() - before)
"""


def page_faults(*, kept: bool) -> int:
    """Pages that the kernel handed out while 80 MB were taken and freed ten times."""
    command = [sys.executable, "-c", SCRIPT.format(kept=kept)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is set up on Linux alone")
def test_freed_memory_is_used_again_without_the_kernel() -> None:
    assert page_faults(kept=True) < page_faults(kept=False) / 10


KEPT = """
import numpy as np, psutil
from training.learn.memory import release_freed_memory, keep_freed_memory
keep_freed_memory()
process = psutil.Process()
for _ in range(4):
    np.ones(10_000_000)
held = process.memory_info().rss
if {given_back}:
    release_freed_memory()
np.ones(1_000_000)
print(held - process.memory_info().rss)
"""


def bytes_given_back(*, given_back: bool) -> int:
    command = [sys.executable, "-c", KEPT.format(given_back=given_back)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="malloc is set up on Linux alone")
def test_what_was_kept_goes_back_to_the_kernel_after_training() -> None:
    assert bytes_given_back(given_back=True) > 75_000_000 > bytes_given_back(given_back=False)
