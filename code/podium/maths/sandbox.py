"""Running programs that a language model wrote: contained, limited, in parallel, whatever they do.

A `Sandbox` keeps a few zygote processes (`sandbox_child`), one program at a time each. Nothing of the evaluator's memory,
files, environment or answers is in them. What a program can do to its zygote (nothing known) ends with the zygote
being replaced and the program run once more.
"""

import os
import queue
import select
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, cast

from podium.errors import PodiumError, PrerequisiteError
from podium.maths.frames import read_frame, write_frame

SOURCE_BYTES = 60_000
START_SECONDS = 30.0
GRACE_SECONDS = 30.0
CODE = Path(__file__).resolve().parents[2]

LEVELS = ("limits", "seccomp", "namespaces", "full")
SAFE_LEVELS = ("namespaces", "full")


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    wall_seconds: float = 5.0
    cpu_seconds: int = 5
    memory_bytes: int = 2**30
    output_bytes: int = 65_536
    file_bytes: int = 2**22
    work_bytes: int = 2**24
    open_files: int = 32
    processes: int = 64


@dataclass(frozen=True)
class ProgramResult:
    """How a program ended: ok, or syntax, error, memory, timeout, cpu, output, crash, too_long, lost."""

    status: str
    stdout: str = ""
    stderr: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def error(self) -> str:
        """The status, and the last line on stderr where there is one; empty for a program that ended well."""
        if self.status == "ok":
            return ""
        last = self.stderr.strip().rsplit("\n", 1)[-1].strip()
        return f"{self.status}: {last}" if last else self.status


@dataclass(frozen=True)
class Isolation:
    """What stands between a program and the machine."""

    level: str
    namespaces: str
    problems: tuple[str, ...]

    @property
    def safe(self) -> bool:
        """True if programs that nobody has read may run."""
        return self.level in SAFE_LEVELS

    def describe(self) -> str:
        """One line for the log."""
        parts = [self.namespaces] if self.namespaces else []
        parts += ["seccomp allowlist"] if self.level in ("full", "seccomp") else []
        parts.append("resource limits")
        trouble = f"; {'; '.join(self.problems)}" if self.problems else ""
        return f"sandbox: {self.level} ({', '.join(parts)}){trouble}"


class _Zygote:
    """One sandbox process and the two pipes to it."""

    def __init__(self, without: tuple[str, ...]) -> None:
        environment = {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(CODE),
            "PYTHONHASHSEED": "0",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-s", "-P", "-B", "-X", "utf8", "-m", "podium.maths.sandbox_child"]
        self.process = subprocess.Popen(
            [*command, ",".join(without) or "nothing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
            close_fds=True,
            start_new_session=True,
            bufsize=0,
        )
        self.control = cast(IO[bytes], self.process.stdin).fileno()
        self.replies = cast(IO[bytes], self.process.stdout).fileno()

    def hello(self) -> dict[str, Any]:
        """The isolation in force, as the child reports it.

        Raises:
            PodiumError: it did not start.
        """
        try:
            hello = read_frame(self.replies, START_SECONDS)
        except (TimeoutError, ValueError) as error:
            raise PodiumError(f"the sandbox process did not start within {START_SECONDS:g} s ({error})") from None
        if hello is None or "failed" in hello:
            why = hello["failed"] if hello else f"it ended with status {self.process.wait()}"
            raise PodiumError(f"the sandbox process did not start: {why}")
        return hello

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any] | None:
        """One exchange; None if the process is gone or silent."""
        try:
            if select.select([self.replies], [], [], 0)[0]:
                return None  # nothing was asked: the process has ended, or speaks out of turn
            write_frame(self.control, request)
            return read_frame(self.replies, timeout)
        except (OSError, TimeoutError, ValueError):
            return None

    def close(self) -> None:
        """End it and everything below it."""
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Sandbox:
    """A pool of zygotes; use as a context manager.

    Args:
        workers: programs at a time.
        limits: what each may use.
        allow_unsafe: run even where the kernel offers less than the safe level.
        without: isolation to leave out ("namespaces", "seccomp"); for tests.

    Raises:
        PrerequisiteError: the isolation is below the safe level and `allow_unsafe` is False.
    """

    def __init__(
        self,
        workers: int = 2,
        limits: Limits | None = None,
        *,
        allow_unsafe: bool = False,
        without: tuple[str, ...] = (),
    ) -> None:
        self.limits = limits or Limits()
        self.workers = workers
        self._without = without
        self._idle: queue.LifoQueue[_Zygote | None] = queue.LifoQueue()
        first = _Zygote(without)
        try:
            self.isolation = _describe(first.hello())
            if not self.isolation.safe and not allow_unsafe:
                raise PrerequisiteError(
                    f"{self.isolation.describe()}: model-written programs could read this machine's files and use its "
                    "network; run where user namespaces are allowed (sysctl user.max_user_namespaces, or "
                    "kernel.apparmor_restrict_unprivileged_userns=0; a container needs CAP_SYS_ADMIN), or accept it "
                    "with allow_unsafe_execution=true"
                )
        except PodiumError:
            first.close()
            raise
        for _ in range(workers - 1):
            self._idle.put(None)
        self._idle.put(first)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the pool."""
        while not self._idle.empty():
            zygote = self._idle.get_nowait()
            if zygote is not None:
                zygote.close()

    def _request(self, source: str) -> dict[str, Any]:
        limits = asdict(self.limits)
        limits["wall_milliseconds"] = int(limits.pop("wall_seconds") * 1000)
        return {"source": source, "limits": limits}

    def run(self, source: str) -> ProgramResult:
        """Run one program; always returns."""
        if len(source.encode("utf-8", "replace")) > SOURCE_BYTES:
            return ProgramResult("too_long", stderr=f"the program is over {SOURCE_BYTES} bytes")
        zygote = self._idle.get()
        try:
            for _ in range(2):
                if zygote is None:
                    zygote = _Zygote(self._without)
                    if _describe(zygote.hello()).level != self.isolation.level:
                        zygote.close()
                        zygote = None
                        raise PodiumError("a new sandbox process is less isolated than the first one; start again")
                reply = zygote.ask(self._request(source), self.limits.wall_seconds + GRACE_SECONDS)
                if reply is not None and "status" in reply:
                    return ProgramResult(**reply)
                zygote.close()
                zygote = None
            return ProgramResult("lost", stderr="the sandbox process ended twice while this program ran")
        finally:
            self._idle.put(zygote)

    def run_many(self, sources: Iterable[str]) -> list[ProgramResult]:
        """Run programs, `workers` at a time; results in order."""
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(self.run, sources))


def _describe(hello: dict[str, Any]) -> Isolation:
    if hello["namespaces"]:
        level = "full" if hello["seccomp"] else "namespaces"
    else:
        level = "seccomp" if hello["seccomp"] else "limits"
    return Isolation(level, hello["namespaces"], tuple(hello["problems"]))
