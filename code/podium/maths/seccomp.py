"""A system-call allowlist for a Python process that only computes: classic BPF, loaded through prctl.

Everything not listed fails with EPERM, so a program sees a PermissionError and not a dead process. In particular there
are no new processes or threads, no sockets, no signals to others, no exec, no mounts, no tracing.
Numbers: Linux `asm/unistd_64.h` (x86_64) and `asm-generic/unistd.h` (aarch64); layout: `linux/seccomp.h`.
"""

import ctypes
import errno
import platform
import struct

PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
RETURN_ALLOW = 0x7FFF0000
RETURN_ERRNO = 0x00050000

LOAD_WORD, JUMP_EQUAL, JUMP_GREATER_EQUAL, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
TCGETS = 0x5401
X32_BIT = 0x40000000

ABSENT = -1
# name: (x86_64, aarch64)
ALLOWED: dict[str, tuple[int, int]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "openat": (257, 56),
    "open": (2, ABSENT),
    "stat": (4, ABSENT),
    "lstat": (6, ABSENT),
    "access": (21, ABSENT),
    "readlink": (89, ABSENT),
    "mkdir": (83, ABSENT),
    "rmdir": (84, ABSENT),
    "unlink": (87, ABSENT),
    "rename": (82, ABSENT),
    "poll": (7, ABSENT),
    "select": (23, ABSENT),
    "statx": (332, 291),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlinkat": (267, 78),
    "mkdirat": (258, 34),
    "unlinkat": (263, 35),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "ftruncate": (77, 46),
    "fsync": (74, 82),
    "fdatasync": (75, 83),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "chdir": (80, 49),
    "dup": (32, 23),
    "dup3": (292, 24),
    "fcntl": (72, 25),
    "umask": (95, 166),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "setitimer": (38, 103),
    "alarm": (37, ABSENT),
    "pause": (34, ABSENT),
    "futex": (202, 98),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "time": (201, ABSENT),
    "times": (100, 153),
    "getrusage": (98, 165),
    "ppoll": (271, 73),
    "pselect6": (270, 72),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getpgrp": (111, ABSENT),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "membarrier": (324, 283),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
ABSENT_TO_THE_PROGRAM = {"clone3": (435, 435), "rseq": (334, 293)}  # ENOSYS: glibc then takes its older path
PRLIMIT = (302, 261)
IOCTL = (16, 29)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value & 0xFFFFFFFF)


def build_filter(machine: str) -> bytes | None:
    """The filter's instructions for a machine, or None where the call numbers are not known."""
    if machine not in MACHINES:
        return None
    column, audit_architecture = MACHINES[machine]
    refuse = _instruction(RETURN, RETURN_ERRNO | errno.EPERM)
    program = [
        _instruction(LOAD_WORD, ARCHITECTURE),
        _instruction(JUMP_EQUAL, audit_architecture, 1, 0),
        refuse,
        _instruction(LOAD_WORD, NUMBER),
        _instruction(JUMP_GREATER_EQUAL, X32_BIT, 0, 1),
        refuse,
    ]
    for numbers in ALLOWED.values():
        if numbers[column] != ABSENT:
            program += [_instruction(JUMP_EQUAL, numbers[column], 0, 1), _instruction(RETURN, RETURN_ALLOW)]
    for numbers in ABSENT_TO_THE_PROGRAM.values():
        no_such_call = _instruction(RETURN, RETURN_ERRNO | errno.ENOSYS)
        program += [_instruction(JUMP_EQUAL, numbers[column], 0, 1), no_such_call]
    # prlimit64 may read limits: its third argument, the new limit, must be a null pointer
    program += [
        _instruction(JUMP_EQUAL, PRLIMIT[column], 0, 6),
        _instruction(LOAD_WORD, ARGUMENTS + 16),
        _instruction(JUMP_EQUAL, 0, 0, 3),
        _instruction(LOAD_WORD, ARGUMENTS + 20),
        _instruction(JUMP_EQUAL, 0, 0, 1),
        _instruction(RETURN, RETURN_ALLOW),
        refuse,
    ]
    # ioctl may ask whether a descriptor is a terminal, which Python does for every file it opens
    program += [
        _instruction(JUMP_EQUAL, IOCTL[column], 0, 3),
        _instruction(LOAD_WORD, ARGUMENTS + 8),
        _instruction(JUMP_EQUAL, TCGETS, 0, 1),
        _instruction(RETURN, RETURN_ALLOW),
        refuse,
    ]
    return b"".join(program)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def install(instructions: bytes) -> None:
    """Apply a filter to this thread and everything it starts, for good.

    Raises:
        OSError: the kernel refused it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = _Program(len(instructions) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


def available() -> bytes | None:
    """The filter for this machine, or None. Whether the kernel takes it shows when it is installed."""
    return build_filter(platform.machine())
