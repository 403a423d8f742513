"""The sandbox's own process: forks one contained process a program. Run as a module by `podium.maths.sandbox` only.

Three generations, so that nothing outlives its parent:
  launcher   enters the namespaces, forks, waits
  zygote     process 1 of them: an empty root folder, maths modules imported, no secrets; serves requests one at a time
  program    process 1 of a namespace of its own inside the zygote's, without privileges, behind limits and seccomp;
             when it ends the kernel ends whatever it started
"""

import gc
import importlib
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from typing import Any

from podium.maths import isolation, seccomp
from podium.maths.frames import read_frame, write_frame

EAGER = "bisect cmath codecs collections copy datetime decimal fractions functools heapq itertools json math operator".split()
EAGER += "random re statistics string sys time typing".split()
LAZY = ("sympy", "numpy", "scipy")
EXIT_ERROR, EXIT_MEMORY, EXIT_SYNTAX, EXIT_SETUP = 1, 71, 72, 73
STDERR_BYTES = 4096


def _import_what_it_mentions(source: str) -> None:
    """Import heavy allowed packages once, here, so that each later program has them for free."""
    for name in LAZY:
        if name in source and name not in sys.modules:
            try:
                importlib.import_module(name)
            except ImportError:
                continue
            gc.freeze()


def _last_words(error: BaseException) -> str:
    """What Python prints last about an exception, its end if it is long."""
    return "".join(traceback.format_exception_only(error)).strip()[-1000:]


def _program(source: str, limits: dict[str, int], state: dict[str, Any], output: int, errors: int) -> None:
    """Contain this process, run the program, and leave; never returns."""
    os.dup2(state["null"], 0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    os.closerange(3, 4096)
    sys.stdin = open(0, encoding="utf-8", errors="replace")
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    isolation.set_limits(limits)
    if state["namespaces"]:
        isolation.drop_privileges()
    if state["filter"] is not None:
        seccomp.install(state["filter"])
    code = EXIT_ERROR
    try:
        sys.argv = ["program.py"]
        sys.modules["random"].seed(0)
        compiled = compile(source, "program.py", "exec")
        exec(compiled, {"__name__": "__main__", "__builtins__": __builtins__})
        code = 0
    except SystemExit as leave:
        code = 0 if leave.code in (None, 0) else EXIT_ERROR
        if code:
            print(f"SystemExit: {leave.code}", file=sys.stderr)
    except MemoryError:
        code = EXIT_MEMORY
    except (SyntaxError, ValueError) as error:
        # ValueError: a NUL byte or a lone surrogate in the source, or one that the program raised itself
        code = EXIT_SYNTAX if isinstance(error, SyntaxError) else EXIT_ERROR
        print(_last_words(error), file=sys.stderr)
    except BaseException as error:  # whatever a program raises is its result; the process ends right after
        print(_last_words(error), file=sys.stderr)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass
        os._exit(code)


def _start(source: str, limits: dict[str, int], state: dict[str, Any], output: int, errors: int) -> int:
    """Fork the program and return its process id."""
    if not state["namespaces"]:
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                os.chdir(state["folder"])
                _program(source, limits, state, output, errors)
            finally:
                os._exit(EXIT_SETUP)
        return child
    reader, writer = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            # in a process of its own, since unshare(NEW_PIDS) can be done once and counts for later children only
            isolation.unshare(isolation.NEW_MOUNTS | isolation.NEW_PIDS)
            isolation.mount_work_folder(limits["work_bytes"])
            os.chdir(isolation.WORK)
            child = os.fork()
            if child == 0:
                try:
                    _program(source, limits, state, output, errors)
                finally:
                    os._exit(EXIT_SETUP)  # could not be contained, so it was not run
            os.write(writer, str(child).encode())
        finally:
            os._exit(0)
    os.close(writer)
    number = os.read(reader, 32)
    os.close(reader)
    os.waitpid(between, 0)
    if not number:
        raise OSError("the program's process could not be set up")
    return int(number)


def _kill(child: int, namespaces: bool) -> None:
    """End the program; as process 1 of its namespace it takes its descendants along."""
    try:
        if namespaces:
            os.kill(child, signal.SIGKILL)
        else:
            os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _reap(child: int) -> tuple[int, float]:
    """Wait for the killed or finished program, and for any orphan; returns its status and CPU seconds."""
    _, status, usage = os.wait4(child, 0)
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            break
    return status, usage.ru_utime + usage.ru_stime


def _watch(child: int, pipes: dict[int, bytearray], limits: dict[str, int], control: int, namespaces: bool) -> str:
    """Collect output until the program ends or breaks a limit; returns "ended" or the limit it broke."""
    deadline = time.monotonic() + limits["wall_milliseconds"] / 1000
    handle = os.pidfd_open(child)
    poll = select.poll()
    poll.register(control, 0)  # hang-up only: the evaluator is gone
    poll.register(handle, select.POLLIN)
    for descriptor in pipes:
        poll.register(descriptor, select.POLLIN)
    verdict = "ended"
    try:
        running = True
        while running:
            left = deadline - time.monotonic()
            if left <= 0:
                verdict = "timeout"
                break
            for descriptor, _ in poll.poll(left * 1000):
                if descriptor == control:
                    _kill(child, namespaces)
                    os._exit(0)
                elif descriptor == handle:
                    running = False
                else:
                    chunk = os.read(descriptor, 65536)
                    if not chunk:
                        poll.unregister(descriptor)
                    pipes[descriptor] += chunk
            if any(len(held) > limits["output_bytes"] for held in pipes.values()):
                verdict = "output"
                break
        if verdict != "ended":
            _kill(child, namespaces)
            return verdict
        for descriptor, held in pipes.items():  # what was written just before the end
            os.set_blocking(descriptor, False)
            try:
                while (chunk := os.read(descriptor, 65536)) and len(held) <= limits["output_bytes"]:
                    held += chunk
            except BlockingIOError:
                pass
        return "output" if any(len(held) > limits["output_bytes"] for held in pipes.values()) else "ended"
    finally:
        os.close(handle)


def _outcome(verdict: str, status: int, cpu: float, limits: dict[str, int]) -> str:
    """One word for how the program ended."""
    if verdict != "ended":
        return verdict
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        spent = number == signal.SIGXCPU or (number == signal.SIGKILL and cpu >= 0.7 * limits["cpu_seconds"])
        return "cpu" if spent else "crash"
    return {0: "ok", EXIT_MEMORY: "memory", EXIT_SYNTAX: "syntax", EXIT_SETUP: "lost"}.get(
        os.WEXITSTATUS(status), "error"
    )


def _serve_one(request: dict[str, Any], state: dict[str, Any], control: int) -> dict[str, Any]:
    source, limits = request["source"], request["limits"]
    _import_what_it_mentions(source)
    started = time.monotonic()
    if not state["namespaces"]:
        state["folder"] = tempfile.mkdtemp(prefix="podium-program-")
    output_reader, output = os.pipe()
    errors_reader, errors = os.pipe()
    pipes = {output_reader: bytearray(), errors_reader: bytearray()}
    try:
        child = _start(source, limits, state, output, errors)
        os.close(output)
        os.close(errors)
        verdict = _watch(child, pipes, limits, control, state["namespaces"])
        if not state["namespaces"]:
            _kill(child, False)
        status, cpu = _reap(child)
    finally:
        for descriptor in pipes:
            os.close(descriptor)
        if not state["namespaces"]:
            shutil.rmtree(state["folder"], ignore_errors=True)
    return {
        "status": _outcome(verdict, status, cpu, limits),
        "stdout": bytes(pipes[output_reader][: limits["output_bytes"]]).decode("utf-8", "replace"),
        "stderr": bytes(pipes[errors_reader][-STDERR_BYTES:]).decode("utf-8", "replace"),
        "seconds": round(time.monotonic() - started, 4),
        "cpu_seconds": round(cpu, 4),
    }


def _filter_works(instructions: bytes) -> str:
    """Why the kernel does not take the filter; empty if it does. Tried in a child, since it cannot be undone."""
    child = os.fork()
    if child == 0:
        try:
            seccomp.install(instructions)
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    _, status = os.waitpid(child, 0)
    return "" if status == 0 else f"seccomp was refused (status {status})"


def _zygote(control: int, replies: int, namespaces: str, problems: list[str], without: list[str]) -> None:
    """Process 1: build the root folder, say what isolation is in force, serve until the evaluator hangs up."""
    null = os.open(os.devnull, os.O_RDONLY)
    for name in EAGER:
        importlib.import_module(name)
    if namespaces:
        isolation.die_with_parent()
        isolation.build_root()
    instructions = None if "seccomp" in without else seccomp.available()
    if instructions is None:
        problems.append("seccomp is switched off or unknown for this machine")
    elif problem := _filter_works(instructions):
        problems.append(problem)
        instructions = None
    state: dict[str, Any] = {"namespaces": bool(namespaces), "filter": instructions, "null": null, "folder": ""}
    hello = {"namespaces": namespaces, "seccomp": instructions is not None, "problems": problems}
    gc.freeze()
    write_frame(replies, hello)
    while (request := read_frame(control)) is not None:
        write_frame(replies, _serve_one(request, state, control))


def main() -> None:
    """Enter the namespaces if that is possible, then become launcher and zygote."""
    without = sys.argv[1].split(",")
    control, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    problems: list[str] = []
    namespaces = ""
    if "namespaces" in without:
        problems.append("namespaces are switched off")
    else:
        try:
            namespaces = isolation.enter_namespaces()
        except OSError as error:
            problems.append(f"namespaces were refused: {error}")
    if not namespaces:
        _zygote(control, replies, "", problems, without)
        return
    child = os.fork()
    if child == 0:
        code = 1
        try:
            _zygote(control, replies, namespaces, problems, without)
            code = 0
        except (BrokenPipeError, KeyboardInterrupt):
            code = 0
        except OSError as error:
            write_frame(replies, {"failed": f"{error}"})
        finally:
            os._exit(code)
    os.close(control)
    os.close(replies)
    os.waitpid(child, 0)


if __name__ == "__main__":
    main()
