"""The few system calls that Python does not wrap, by ctypes.

Design rule: every call either succeeds or raises OSError naming itself; nothing is best effort.

Source: the kernel's own tables (unistd_64.h and asm-generic/unistd.h, Linux 6.1 headers) and manual pages.
"""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECCOMP = 1, 4, 24, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38

# name, number on x86_64, number on aarch64 ("-": the call does not exist there). Grouped as the filter treats them.
_ALLOWED = """
read 0 63; write 1 64; readv 19 65; writev 20 66; pread64 17 67; pwrite64 18 68; lseek 8 62; close 3 57;
close_range 436 436; dup 32 23; dup2 33 -; dup3 292 24; pipe 22 -; pipe2 293 59; fstat 5 80; newfstatat 262 79;
getdents64 217 61; getcwd 79 17; fchdir 81 50; fstatfs 138 44; mmap 9 222; munmap 11 215; mremap 25 216;
mprotect 10 226; madvise 28 233; brk 12 214; membarrier 324 283; futex 202 98; rseq 334 293; set_robust_list 273 99;
set_tid_address 218 96; arch_prctl 158 -; gettid 186 178; getpid 39 172; getppid 110 173; getpgrp 111 -;
getpgid 121 155; getsid 124 156; getuid 102 174; geteuid 107 175; getgid 104 176; getegid 108 177; getgroups 115 158;
getresuid 118 148; getresgid 120 150; sched_yield 24 124; sched_getaffinity 204 123; getcpu 309 168; getrlimit 97 163;
getrusage 98 165; sysinfo 99 179; uname 63 160; times 100 153; time 201 -; gettimeofday 96 169; clock_gettime 228 113;
clock_getres 229 114; clock_nanosleep 230 115; nanosleep 35 101; getrandom 318 278; umask 95 166; rt_sigaction 13 134;
rt_sigprocmask 14 135; rt_sigreturn 15 139; rt_sigpending 127 136; rt_sigtimedwait 128 137; rt_sigsuspend 130 133;
sigaltstack 131 132; restart_syscall 219 128; pause 34 -; alarm 37 -; setitimer 38 103; getitimer 36 102; poll 7 -;
ppoll 271 73; select 23 -; pselect6 270 72; epoll_create1 291 20; epoll_ctl 233 21; epoll_wait 232 -;
epoll_pwait 281 22; eventfd2 290 19; recvfrom 45 207; shutdown 48 210; getsockname 51 204; getpeername 52 205;
getsockopt 55 209; wait4 61 260; waitid 247 95; exit 60 93; exit_group 231 94
"""
_OPENING = """
open 2 -; openat 257 56; stat 4 -; lstat 6 -; statx 332 291; access 21 -; faccessat 269 48; faccessat2 439 439;
readlink 89 -; readlinkat 267 78; statfs 137 43; chdir 80 49
"""
_CHECKED = """
clone 56 220; clone3 435 435; kill 62 129; tgkill 234 131; prlimit64 302 261; ioctl 16 29; fcntl 72 25;
socketpair 53 199; sendto 44 206
"""
_FATAL = """
ptrace 101 117; process_vm_readv 310 270; process_vm_writev 311 271; unshare 272 97; setns 308 268; bpf 321 280;
io_uring_setup 425 425; io_uring_enter 426 426; io_uring_register 427 427; keyctl 250 219; add_key 248 217;
request_key 249 218; mount 165 40; umount2 166 39; pivot_root 155 41; mount_setattr 442 442; move_mount 429 429;
open_tree 428 428; fsopen 430 430; fsmount 432 432; fsconfig 431 431; fspick 433 433; perf_event_open 298 241;
userfaultfd 323 282; init_module 175 105; finit_module 313 273; delete_module 176 106; kexec_load 246 104;
kexec_file_load 320 294; pidfd_getfd 438 438; kcmp 312 272
"""
_OURS = "landlock_create_ruleset 444 444; landlock_add_rule 445 445; landlock_restrict_self 446 446"

MACHINE = os.uname().machine
_COLUMN = {"x86_64": 1, "aarch64": 2}.get(MACHINE)


def _numbers(table: str) -> dict[str, int]:
    rows = [row.split() for row in table.split(";")]
    return {row[0]: int(row[_COLUMN]) for row in rows if _COLUMN and row[_COLUMN] != "-"}


ALLOWED, OPENING, CHECKED, FATAL = _numbers(_ALLOWED), _numbers(_OPENING), _numbers(_CHECKED), _numbers(_FATAL)
_BY_NAME = FATAL | _numbers(_OURS)


def syscall(name: str, *arguments: int | bytes | None) -> int:
    """Make the named system call; bytes are passed by address.

    Raises:
        OSError: the call failed, or this architecture has no number for it.
    """
    if name not in _BY_NAME:
        raise OSError(38, f"{name}: no system-call number known for {MACHINE}")
    values = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    return _checked(name, _libc.syscall(ctypes.c_long(_BY_NAME[name]), *values))


def libc(name: str, *arguments: int | bytes | None) -> int:
    """Call the named C library function of the "-1 and errno" kind.

    Raises:
        OSError: it returned -1.
    """
    values = [ctypes.c_ulong(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    return _checked(name, getattr(_libc, name)(*values))


def _checked(name: str, result: int) -> int:
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Where a buffer made by `ctypes.create_string_buffer` lies, for structures that hold pointers."""
    return ctypes.addressof(buffer)


def prctl(option: int, *arguments: int) -> None:
    """prctl(2), with unused arguments zero.

    Raises:
        OSError: the kernel refused.
    """
    libc("prctl", option, *arguments, *[0] * (4 - len(arguments)))
