"""A list of checks, which prints one line for each."""

from collections.abc import Callable
from typing import TypeVar

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from common.command import in_one_line
from common.outputs import NotDeployedError

# Timeouts for checks that may be skipped.
BRIEF = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})

Found = TypeVar("Found")


class CheckFailedError(Exception):
    """The check failed; the message says what is wrong and what to do."""


class WarningError(Exception):
    """The run can start; the message says what the user should know and do."""


class NotCheckedError(Exception):
    """The check could not be made; the message says why."""


class Checklist:
    """Prints the result of each check, and collects the names of those that failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def require(self, name: str, check: Callable[[], tuple[str, Found]]) -> Found | None:
        """Run `check`, which returns a note and a result; return the result, or None if it failed.

        Errors of AWS are raised.
        """
        try:
            note, found = check()
        except CheckFailedError as error:
            self.failed.append(name)
            self._print("no", name, str(error))
            return None
        self._print("ok", name, note)
        return found

    def try_check(self, name: str, check: Callable[[], tuple[str, Found]]) -> Found | None:
        """Run `check` as `require` does, but print "not checked" if AWS does not answer it."""
        try:
            return self.require(name, check)
        except WarningError as error:
            self._print("warning", name, str(error))
        except NotCheckedError as error:
            self._print("not checked", name, str(error))
        except ClientError as error:
            code = error.response["Error"]["Code"]
            self._print("not checked", name, f"{error.operation_name} failed with {code}")
        except (BotoCoreError, NotDeployedError) as error:
            self._print("not checked", name, in_one_line(error))
        return None

    @staticmethod
    def _print(result: str, name: str, note: str) -> None:
        print(f"  {result:<11}  {name:<8}  {note}", flush=True)
