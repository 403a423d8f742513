import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from podium.errors import PrerequisiteError
from podium.maths import seccomp
from podium.maths.sandbox import Limits, Sandbox

CODE = Path(__file__).resolve().parents[1] / "code"

CANARY = "canary-5f1c"
LIMITS = Limits(wall_seconds=1.0, cpu_seconds=1, memory_bytes=2**29, output_bytes=10_000)


@pytest.fixture(scope="module")
def sandbox():
    os.environ["PODIUM_TEST_SECRET"] = CANARY
    try:
        with Sandbox(1, LIMITS) as box:
            yield box
    except PrerequisiteError as error:
        pytest.skip(f"this machine allows no safe sandbox: {error}")
    finally:
        del os.environ["PODIUM_TEST_SECRET"]


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Files on the machine that no program may read or change."""
    folder = tmp_path_factory.mktemp("outside")
    folder.chmod(0o777)
    (folder / "secret.txt").write_text(CANARY)
    return folder


def answers(box: Sandbox) -> bool:
    return box.run("print(6 * 7)").stdout == "42\n"


def descendants(pid: int) -> set[int]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found |= {int(path.parent.name)} | descendants(int(path.parent.name))
    return found


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


# Each program prints "ESCAPED" and what it got hold of if it succeeds. Those marked harmless do so outside the sandbox.
ESCAPES = {
    # environment and files
    "environment": ("import os; print('ESCAPED' if 'PODIUM_TEST_SECRET' in os.environ else 'no')", True),
    "password file": ("print('ESCAPED', open('/etc/passwd').read()[:40])", True),
    "shadow file": ("print('ESCAPED', open('/etc/shadow').read()[:40])", False),
    "secret file": ("print('ESCAPED', open('{outside}/secret.txt').read())", True),
    "home folder": ("import os; found = os.listdir('/root') + os.listdir('/home'); print('ESCAPED', [f for f in found if f.startswith('.') and f != '.pyenv'][0])", False),
    "listing of outside": ("import os; print('ESCAPED', os.listdir('{outside}'))", True),
    "write outside": ("open('{outside}/written', 'w').write('x'); print('ESCAPED')", True),
    "write beside python": ("import os; open(os.path.dirname(os.__file__) + '/podium_evil.py', 'w').write('x'); print('ESCAPED')", False),
    "write in site-packages": ("import sympy, os; open(os.path.dirname(sympy.__file__) + '/podium_evil.py', 'w'); print('ESCAPED')", False),
    "write in the root folder": ("open('/evil', 'w').write('x'); print('ESCAPED')", False),
    "dot dot": ("print('ESCAPED', open('../../../../../../../../../../etc/passwd').read()[:20])", True),
    "link to outside": ("import os; os.symlink('/etc/passwd', 'x'); print('ESCAPED', open('x').read()[:20])", True),
    "proc environment": ("print('ESCAPED', open('/proc/1/environ').read())", False),
    "proc self maps": ("print('ESCAPED', open('/proc/self/maps').read()[:30])", True),
    "proc of the parent": ("import os; print('ESCAPED', open(f'/proc/{os.getppid()}/cmdline').read())", False),
    "proc root": ("import os; print('ESCAPED', os.listdir('/proc/1/root/'))", False),
    "devices": ("print('ESCAPED', open('/dev/sda', 'rb').read(1) or open('/dev/vda', 'rb').read(1))", False),
    "kernel memory": ("print('ESCAPED', open('/dev/mem', 'rb').read(1))", False),
    "sys": ("import os; print('ESCAPED', os.listdir('/sys'))", True),
    "shared memory": ("open('/dev/shm/evil', 'w').write('x'); print('ESCAPED')", False),
    # processes
    "fork": ("import os; print('ESCAPED' if os.fork() >= 0 else '')", False),
    "fork bomb": ("import os\nwhile True:\n    os.fork()\n    print('ESCAPED')", False),
    "double fork": ("import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(60)\nprint('ESCAPED')", False),
    "subprocess": ("import subprocess; print('ESCAPED', subprocess.run(['/bin/sh', '-c', 'id'], capture_output=True))", True),
    "os.system": ("import os; print('ESCAPED' if os.system('true') == 0 else 'no')", True),
    "exec": ("import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'print(\"ESCAPED\")'])", True),
    "threads": ("import threading; t = threading.Thread(target=print, args=('ESCAPED',)); t.start(); t.join()", True),
    "multiprocessing": ("import multiprocessing as m; p = m.Process(target=print); p.start(); p.join(); print('ESCAPED')", True),
    "kill the parent": ("import os, signal; os.kill(os.getppid(), signal.SIGKILL); print('ESCAPED')", False),
    "kill everything": ("import os; os.kill(-1, 9); print('ESCAPED')", False),
    "kill the group": ("import os; os.killpg(0, 9); print('ESCAPED')", False),
    "stop itself for ever": ("import os, signal; os.kill(os.getpid(), signal.SIGSTOP); print('ESCAPED')", False),
    "leave the session": ("import os; os.setsid(); print('ESCAPED')", False),
    "ptrace": ("import ctypes; print('ESCAPED' if ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0 else 'no')", True),
    # privileges
    "become root": ("import os; os.setuid(0); print('ESCAPED')", False),
    "chroot": ("import os; os.chroot('.'); print('ESCAPED')", False),
    "mount": ("import ctypes; print('ESCAPED' if ctypes.CDLL(None).mount(b'none', b'/sandbox', b'tmpfs', 0, None) == 0 else 'no')", False),
    "unshare": ("import ctypes; print('ESCAPED' if ctypes.CDLL(None).unshare(0x10000000) == 0 else 'no')", True),
    "unmount the root's cover": ("import ctypes; print('ESCAPED' if ctypes.CDLL(None).umount2(b'/', 2) == 0 else 'no')", False),
    "raise a limit": ("import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); print('ESCAPED')", True),
    "drop seccomp": ("import ctypes; print('ESCAPED' if ctypes.CDLL(None).prctl(22, 0, 0, 0, 0) == 0 else 'no')", False),
    "host name": ("import ctypes; print('ESCAPED' if ctypes.CDLL(None).sethostname(b'evil', 4) == 0 else 'no')", False),
    "keyring": ("import ctypes; print('ESCAPED' if ctypes.CDLL(None).syscall(248, b'user', b'a', b'b', 1, -1) > 0 else 'no')", False),
    "bpf": ("import ctypes; print('ESCAPED' if ctypes.CDLL(None).syscall(321, 0, None, 0) >= 0 else 'no')", False),
    "io_uring": ("import ctypes; b = ctypes.create_string_buffer(200); print('ESCAPED' if ctypes.CDLL(None).syscall(425, 1, b) >= 0 else 'no')", False),
    "reboot": ("import ctypes; print('ESCAPED' if ctypes.CDLL(None).syscall(169, 0, 0, 0, 0) == 0 else 'no')", False),
    "set the clock": ("import time; time.clock_settime(time.CLOCK_REALTIME, 0); print('ESCAPED')", False),
    "x32 system calls": ("import ctypes; print('ESCAPED' if ctypes.CDLL(None).syscall(0x40000000 + 57) >= 0 else 'no')", False),
    # network
    "tcp socket": ("import socket; s = socket.socket(); print('ESCAPED')", True),
    "udp socket": ("import socket; s = socket.socket(type=socket.SOCK_DGRAM); print('ESCAPED')", True),
    "unix socket": ("import socket; s = socket.socket(socket.AF_UNIX); print('ESCAPED')", True),
    "socket pair": ("import socket; print('ESCAPED', socket.socketpair())", True),
    "netlink": ("import socket; s = socket.socket(16, 3, 0); print('ESCAPED')", True),
    "name look-up": ("import socket; print('ESCAPED', socket.getaddrinfo('localhost', 80))", True),
    "http": ("import urllib.request as u; print('ESCAPED', u.urlopen('http://127.0.0.1:1', timeout=1))", False),
    # the evaluator
    "inherited descriptors": ("import os\nfor d in range(3, 4096):\n    try:\n        os.fstat(d)\n        print('ESCAPED', d)\n    except OSError:\n        pass", False),
    "answer through the reply pipe": ("import os, json, struct\nb = json.dumps(dict(status='ok', stdout='7')).encode()\nfor d in range(3, 300):\n    try:\n        os.write(d, struct.pack('>I', len(b)) + b)\n        print('ESCAPED')\n    except OSError:\n        pass", False),
    "monkey-patched grader": (f"import sys\nsys.path.insert(0, {str(CODE)!r})\nfrom podium.maths import grading\ngrading.grade = lambda *a, **k: True\nprint('ESCAPED')", False),
    "memory of the parent": ("import ctypes; print('ESCAPED' if ctypes.CDLL(None).syscall(310, 1, None, 0, None, 0, 0) >= 0 else 'no')", False),
    "debugger file in work folder": ("import os; os.mknod('d', 0o60666, os.makedev(8, 0)); print('ESCAPED', open('d'))", False),
}  # fmt: skip

# Programs that hold on to something: the status they must end with.
HOGS = {
    "endless loop": ("while True: pass", ("cpu", "timeout")),
    "sleep": ("import time; time.sleep(600)", ("timeout",)),
    "ignoring signals": ("import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass", ("cpu", "timeout")),
    "hang in C": ("print(pow(3, 10**9) > 0)", ("cpu", "timeout", "memory")),
    "hang in a regular expression": ("import re; re.match('(a+)+$', 'a' * 60 + 'b')", ("cpu", "timeout")),
    "memory bomb": ("x = [0] * 10**9", ("memory",)),
    "slow memory bomb": ("x = []\nwhile True: x.append(bytearray(2**20))", ("memory", "cpu", "timeout")),
    "output bomb": ("while True: print('x' * 1000)", ("output",)),
    "error output bomb": ("import sys\nwhile True: print('x' * 1000, file=sys.stderr)", ("output",)),
    "disk bomb": ("import os\nfor n in range(10**6):\n    open(f'f{n}', 'wb').write(bytes(2**20))", ("error",)),
    "many files": ("for n in range(10**6): open(f'f{n}', 'w').close()", ("error",)),
    "descriptor bomb": ("h = []\nwhile True: h.append(open('x', 'w'))", ("error",)),
    "recursion": ("f = lambda n: f(n + 1)\nf(0)", ("error",)),
    "deep recursion in C": ("import sys\nsys.setrecursionlimit(10**9)\nf = lambda n: f(n + 1) + [*map(f, [n])][0]\nf(0)", ("crash", "error", "memory", "cpu", "timeout")),
    "deeply nested source": ("(" * 5000 + "1" + ")" * 5000, ("syntax", "memory", "error")),
    "abort": ("import os; os.abort()", ("crash",)),
    "segmentation fault": ("import ctypes; ctypes.string_at(0)", ("crash",)),
    "closed output, then a hang": ("import os, time\nos.close(1); os.close(2); time.sleep(600)", ("timeout",)),
    "silent exit": ("import os; os._exit(5)", ("error",)),
    "waiting for input": ("input()", ("error",)),
    "garbage at exit": ("class A:\n    def __del__(self):\n        while True: pass\na = A()\nprint(1)", ("ok", "cpu", "timeout")),
    "bytes that are no text": ("import sys; sys.stdout.buffer.write(bytes(range(256)))", ("ok",)),
    "NUL in the source": ("print(1)\0", ("error", "syntax")),
    "lone surrogate in the source": ("print('\ud800')", ("ok", "error", "syntax")),
    "too long": ("#" * 100_000, ("too_long",)),
}  # fmt: skip


def test_there_are_enough_escapes():
    assert len(ESCAPES) + len(HOGS) >= 40 and len(ESCAPES) >= 40


@pytest.mark.parametrize("name", ESCAPES)
def test_no_escape_succeeds(name, sandbox, outside):
    source = ESCAPES[name][0].replace("{outside}", str(outside))
    result = sandbox.run(source)
    assert "ESCAPED" not in result.stdout, result
    assert CANARY not in result.stdout + result.stderr
    assert result.status in ("ok", "error", "crash", "cpu", "timeout", "output"), result
    assert sorted(path.name for path in outside.iterdir()) == ["secret.txt"]
    assert answers(sandbox)


@pytest.mark.parametrize("name", [name for name, (_, harmless) in ESCAPES.items() if harmless])
def test_the_escapes_are_real(name, outside):
    """Without the sandbox the same programs get what they are after; otherwise the test above could not fail."""
    source = ESCAPES[name][0].replace("{outside}", str(outside))
    environment = {**os.environ, "PODIUM_TEST_SECRET": CANARY}
    with_folder = outside.parent / "plain"
    with_folder.mkdir(exist_ok=True)
    for path in with_folder.iterdir():
        path.unlink()
    run = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, env=environment, cwd=with_folder
    )
    (outside / "written").unlink(missing_ok=True)
    assert "ESCAPED" in run.stdout, run


@pytest.mark.parametrize("name", HOGS)
def test_a_hog_ends_and_the_next_program_answers(name, sandbox):
    source, expected = HOGS[name]
    started = time.monotonic()
    result = sandbox.run(source)
    assert result.status in expected, result
    assert time.monotonic() - started < LIMITS.wall_seconds + 8
    assert len(result.stdout) <= LIMITS.output_bytes and len(result.stderr) <= 5000
    assert answers(sandbox)


def test_ordinary_programs_work(sandbox):
    programs = {
        "import math\nprint(math.comb(10, 3))": "120\n",
        "from fractions import Fraction\nprint(Fraction(1, 3) + Fraction(1, 6))": "1/2\n",
        "from sympy import symbols, solve\nx = symbols('x')\nprint(solve(x**2 - 4, x))": "[-2, 2]\n",
        "import numpy as np\nprint(np.arange(4).sum())": "6\n",
        "def solution():\n    return 5\nprint(solution())": "5\n",
        "import datetime\nprint(datetime.date(2024, 2, 29).weekday())": "3\n",
        "open('x', 'w').write('7')\nprint(open('x').read())": "7\n",
        "if __name__ == '__main__':\n    print('main')": "main\n",
        "import sys\nprint(3)\nsys.exit()": "3\n",
        "import random\nprint(random.random())": "0.8444218515250481\n",
        "print(len({'a', 'b'}), 'é')": "2 é\n",
    }
    for source, output in programs.items():
        result = sandbox.run(source)
        assert (result.status, result.stdout) == ("ok", output), (source, result)


def test_errors_are_told_apart(sandbox):
    assert sandbox.run("print(1 / 0)").error == "error: ZeroDivisionError: division by zero"
    assert sandbox.run("print(").error.startswith("syntax: SyntaxError")
    assert sandbox.run("print(x)").error == "error: NameError: name 'x' is not defined"
    assert sandbox.run("raise SystemExit(3)").error == "error: SystemExit: 3"
    partial = sandbox.run("print(1)\nraise ValueError('a\\nb')")
    assert partial.status == "error" and partial.stdout == "1\n"
    assert sandbox.run("print(1)").error == ""


def test_programs_leave_nothing_to_each_other(sandbox):
    sandbox.run("open('left', 'w').write('x')\nimport math\nmath.pi = 3\nimport builtins\nbuiltins.print = None")
    result = sandbox.run("import os, math\nprint(os.listdir('.'), math.pi)")
    assert result.stdout == "[] 3.141592653589793\n"


def test_the_limit_of_five_seconds_is_five_seconds():
    """SDAT defect 3: there, an argument slipped and programs got one second."""
    assert Limits().wall_seconds == 5.0
    with Sandbox(1) as box:
        assert box.run("import time; time.sleep(1.6); print(1)").status == "ok"


def test_a_killed_zygote_is_replaced(sandbox):
    (zygote,) = [one for one in sandbox._idle.queue if one is not None]
    os.kill(zygote.process.pid, signal.SIGKILL)
    time.sleep(0.1)
    assert answers(sandbox)
    (other,) = [one for one in sandbox._idle.queue if one is not None]
    assert other.process.pid != zygote.process.pid
    assert descendants(zygote.process.pid) == set()


def test_a_zygote_killed_during_a_program_runs_it_again():
    with Sandbox(1, Limits(wall_seconds=5)) as box:
        (zygote,) = [one for one in box._idle.queue if one is not None]
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.4; kill -9 {zygote.process.pid}"])
        started = time.monotonic()
        result = box.run("import time; time.sleep(1); print(5)")
        killer.wait()
        assert (result.status, result.stdout) == ("ok", "5\n")
        assert time.monotonic() - started > 1.3  # it did run twice


def test_the_processes_die_with_the_evaluator(tmp_path):
    script = (
        "import sys, threading, time\nfrom podium.maths.sandbox import *\nbox = Sandbox(1, Limits(wall_seconds=60, cpu_seconds=60))\n"
        "print([z.process.pid for z in box._idle.queue if z][0], flush=True)\nbox.run('import time; time.sleep(50)')"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    launcher = int(parent.stdout.readline())
    deadline = time.monotonic() + 10
    while len(descendants(launcher)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    family = descendants(launcher) | {launcher}
    assert len(family) >= 3  # launcher, zygote, program
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while any(Path(f"/proc/{pid}").exists() for pid in family) and time.monotonic() < deadline + 10:
        time.sleep(0.05)
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]


def test_isolation_is_told_and_a_weak_one_refused(sandbox):
    assert sandbox.isolation.safe and sandbox.isolation.level in ("full", "namespaces")
    assert sandbox.isolation.describe().startswith(f"sandbox: {sandbox.isolation.level} (")
    for without, level in ((("namespaces",), "seccomp"), (("namespaces", "seccomp"), "limits")):
        with pytest.raises(PrerequisiteError, match="allow_unsafe_execution=true"):
            Sandbox(1, without=without)
        with Sandbox(1, LIMITS, without=without, allow_unsafe=True) as box:
            assert box.isolation.level == level and not box.isolation.safe
            assert answers(box)
            assert box.run("while True: pass").status in ("cpu", "timeout")
            assert answers(box)


def test_namespaces_alone_hold_the_worst(outside):
    with Sandbox(1, LIMITS, without=("seccomp",)) as box:
        assert box.isolation.level == "namespaces" and box.isolation.safe
        for name in ("environment", "secret file", "write outside", "proc root", "become root", "http", "mount"):
            result = box.run(ESCAPES[name][0].replace("{outside}", str(outside)))
            assert "ESCAPED" not in result.stdout, (name, result)
        family = descendants([z for z in box._idle.queue if z][0].process.pid)
        assert box.run(ESCAPES["double fork"][0]).stdout.count("ESCAPED") >= 1
        assert box.run("import os\nwhile True: os.fork()").status in ("error", "cpu", "timeout", "crash")
        time.sleep(0.2)
        assert descendants([z for z in box._idle.queue if z][0].process.pid) == family
        assert answers(box)


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="without root this is the ordinary path")
def test_a_user_without_privileges_gets_a_user_namespace_that_holds_as_well(outside):
    names = [
        "secret file",
        "write outside",
        "proc root",
        "fork",
        "become root",
        "tcp socket",
        "mount",
        "write in the root folder",
    ]
    programs = [ESCAPES[name][0].replace("{outside}", str(outside)) for name in names]
    script = (
        "import json, sys\nfrom podium.maths.sandbox import *\n"
        "with Sandbox(1) as box:\n    print(json.dumps([box.isolation.describe(), *[box.run(s).stdout for s in json.loads(sys.argv[1])]]))"
    )
    command = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-all", sys.executable, "-c", script]
    done = subprocess.run([*command, json.dumps([*programs, "print(6 * 7)"])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    level, *outputs, last = json.loads(done.stdout)
    assert level.startswith("sandbox: full (user, mount, pid")
    assert not [name for name, output in zip(names, outputs, strict=True) if "ESCAPED" in output]
    assert last == "42\n"


def test_seccomp_allows_nothing_that_starts_or_reaches():
    numbers = {
        "socket": 41,
        "connect": 42,
        "clone": 56,
        "fork": 57,
        "vfork": 58,
        "execve": 59,
        "kill": 62,
        "ptrace": 101,
    }
    numbers |= {"mount": 165, "unshare": 272, "setns": 308, "bpf": 321, "execveat": 322, "process_vm_readv": 310}
    allowed = {columns[0] for columns in seccomp.ALLOWED.values()}
    assert not {name for name, number in numbers.items() if number in allowed}
    assert seccomp.build_filter("riscv64") is None
    assert len(seccomp.build_filter("aarch64") or b"") % 8 == 0


def _count_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def run_without_leaks(programs: int) -> None:
    before = _count_open_files()
    patient = dataclasses.replace(LIMITS, wall_seconds=30.0)  # one of thousands may wait a second on a busy machine
    with Sandbox(2, patient) as box:
        box.run_many(["print(1)"] * 4)
        zygotes = [one.process.pid for one in box._idle.queue if one is not None]
        files = {pid: len(os.listdir(f"/proc/{pid}/fd")) for parent in zygotes for pid in descendants(parent)}
        held = _count_open_files()
        sources = [("print(2)", "1/0", "print('x' * 100000)", "import os; os.abort()")[n % 4] for n in range(programs)]
        results = box.run_many(sources)
        assert [result.status for result in results] == ["ok", "error", "output", "crash"] * (programs // 4)
        assert _count_open_files() == held
        assert sorted(one.process.pid for one in box._idle.queue if one is not None) == sorted(zygotes)
        for pid, count in files.items():
            assert len(os.listdir(f"/proc/{pid}/fd")) == count
        assert {pid for parent in zygotes for pid in descendants(parent)} == set(files)
    assert _count_open_files() == before
    assert not [pid for pid in descendants(os.getpid()) if state(pid) == "Z"]


def test_hundreds_of_programs_leave_no_process_and_no_descriptor():
    run_without_leaks(400)


@pytest.mark.long
def test_ten_thousand_programs_leave_no_process_and_no_descriptor():
    run_without_leaks(10_000)


def test_an_environment_behind_a_link_is_found(tmp_path):
    """A linked .venv has another name than the place its packages are in; programs import by the name."""
    (tmp_path / "linked").symlink_to(sys.prefix)
    code = "from podium.maths.sandbox import Sandbox\nwith Sandbox(1) as box:\n    print(box.run('import numpy; print(7)'))"
    done = subprocess.run(
        [tmp_path / "linked" / "bin" / "python", "-c", code], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(CODE)},
    )  # fmt: skip
    assert "stdout='7\\n'" in done.stdout, done
