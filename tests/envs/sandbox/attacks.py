"""The published attack suite: hostile programs, each with the verdicts it may get. None may get `pass`, ever.

An attack is written so that getting through is the expected answer. Three kinds of answer are expected: the word "escaped"
after some forbidden act; the content of a secret file that only the trainer can read; or 5, from a function that should add
2 and 3 and does not. Success at any of them would earn `pass`, and fail the test.

The groups follow the life of a program: time, memory and size, reading, writing and privilege, network, processes, early
exit, lying. `EASY` marks attacks that do succeed without isolation and harm nothing; the suite proves that on the tier
without isolation, so that a contained attack is known to be contained and not merely broken.
"""

# ruff: noqa: E501 - a program in one line is easier to look over than the same program in five strings

import textwrap
from dataclasses import dataclass, replace

from envs.sandbox import Test, Verdict

CRASH, ERROR, MEMORY, OUTPUT = Verdict.CRASH, Verdict.ERROR, Verdict.MEMORY, Verdict.OUTPUT_LIMIT
PROTOCOL, TIMEOUT, VIOLATION, WRONG = Verdict.PROTOCOL, Verdict.TIMEOUT, Verdict.VIOLATION, Verdict.WRONG
DENIED = (ERROR, VIOLATION)
ESCAPED = "escaped"
SECRET = "the secret that the canary file holds"
CANARY = "@CANARY@"  # replaced by the canary's path
ADD = Test((2, 3), expected=5)


@dataclass(frozen=True)
class Attack:
    """One hostile program; `allowed` are the verdicts that count as contained."""

    name: str
    source: str
    allowed: tuple[Verdict, ...]
    tests: tuple[Test, ...] = (Test(expected=ESCAPED),)
    entry: str = "solve"
    easy: bool = False
    needs: str = ""  # the layer without which it is not contained; Landlock and the filter leave a file's metadata visible


def act(name: str, body: str, *allowed: Verdict, easy: bool = False) -> Attack:
    """A function that does something forbidden and then says so."""
    source = "def solve():\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ") + f"\n    return {ESCAPED!r}\n"
    return Attack(name, source, allowed or DENIED, easy=easy)


def leak(name: str, body: str, *allowed: Verdict, easy: bool = False) -> Attack:
    """A function that returns the canary file's content, if it can get it."""
    source = "def solve():\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")
    return Attack(name, source, allowed or DENIED, (Test(expected=SECRET),), easy=easy)


def lie(name: str, source: str, *allowed: Verdict, tests: tuple[Test, ...] = (ADD,)) -> Attack:
    """A program that does not solve the task and wants to be paid for it."""
    return Attack(name, textwrap.dedent(source).strip(), allowed or (WRONG,), tests)


TIME = [
    act("endless loop", "while True: pass", TIMEOUT),
    lie("endless loop at import", "while True: pass", TIMEOUT),
    act("sleep", "import time; time.sleep(1e6)", TIMEOUT),
    act("wait on a lock", "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()", TIMEOUT),
    act("read from an empty pipe", "import os; r, w = os.pipe(); os.read(r, 1)", TIMEOUT),
    act(
        "loop that catches everything",
        """
        while True:
            try:
                while True: pass
            except BaseException: pass
        """,
        TIMEOUT,
    ),
    act(
        "all signals ignored",
        """
        import signal
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        while True: pass
        """,
        TIMEOUT,
    ),
    act(
        "all signals blocked",
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))\nwhile True: pass",
        TIMEOUT,
    ),
    act(
        "alarm handler of its own",
        """
        import signal
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        while True: pass
        """,
        TIMEOUT,
    ),
    act(
        "processor timer handler of its own",
        "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        TIMEOUT,
    ),
    act("power tower in one C call", "9 ** 9 ** 9", TIMEOUT, MEMORY),
    act("factorial", "import math; math.factorial(10 ** 8)", TIMEOUT, MEMORY),
    act("integer to text", "import sys; sys.set_int_max_str_digits(0); str(1 << 10 ** 8)", TIMEOUT, MEMORY),
    act("catastrophic regular expression", "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')", TIMEOUT),
    act("hash collisions", "{k * (2 ** 61 - 1): 0 for k in range(200_000)}", TIMEOUT, MEMORY),
    act(
        "two threads that spin",
        "import threading\nfor _ in 'ab': threading.Thread(target=exec, args=('while 1: 1',)).start()\nwhile True: pass",
        TIMEOUT,
    ),
    act("many short sleeps", "import time\nwhile True: time.sleep(0.01)", TIMEOUT),
]

SIZE = [
    act("list bomb", "x = []\nwhile True: x.append([0] * 10_000)", MEMORY, TIMEOUT),
    act("list of great length", "[0] * (1 << 36)", MEMORY),
    act("string of 64 GiB", "'x' * (64 << 30)", MEMORY),
    act("integer of a tebibit", "1 << (1 << 40)", MEMORY),
    act("list of a huge range", "list(range(10 ** 10))", MEMORY, TIMEOUT),
    act("anonymous map", "import mmap; mmap.mmap(-1, 64 << 30)", ERROR, MEMORY),
    act(
        "map touched page by page",
        "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 20)); x[-1].write(b'x' * (1 << 20))",
        ERROR,
        MEMORY,
        TIMEOUT,
    ),
    lie("memory held at import", "x = []\nwhile True: x.append(bytearray(1 << 20))", MEMORY, TIMEOUT),
    act("zip bomb", "import zlib; zlib.decompress(zlib.compress(bytes(1 << 26)) , bufsize=1 << 34)", MEMORY, TIMEOUT),
    act(
        "recursion without end",
        "import sys; sys.setrecursionlimit(10 ** 9)\ndef f(): return f() + 1\nf()",
        MEMORY,
        TIMEOUT,
        CRASH,
    ),
    act(
        "recursion in C",
        "import sys; sys.setrecursionlimit(10 ** 9)\nx = []\nfor _ in range(10 ** 6): x = [x]\nrepr(x)",
        CRASH,
        ERROR,
        MEMORY,
        TIMEOUT,
    ),
    act("text of a deep list", "x = []\nfor _ in range(10 ** 6): x = [x]\nrepr(x)", ERROR, MEMORY, TIMEOUT),
    lie("deep return value", "def solve(a, b):\n x = []\n for _ in range(10 ** 6): x = [x]\n return x", ERROR, TIMEOUT),
    lie("cyclic return value", "def solve(a, b):\n x = []\n x.append(x)\n return x", ERROR),
    lie("return value of 100 MB", "def solve(a, b): return 'x' * 10 ** 8", OUTPUT),
    lie("many small members", "def solve(a, b): return [[]] * 10 ** 6", OUTPUT, TIMEOUT),
    lie("large integer returned", "def solve(a, b): return 1 << 10 ** 8", OUTPUT),
    lie("endless generator returned", "import itertools\ndef solve(a, b): return itertools.count()", ERROR),
    lie(
        "endless iteration of a list",
        "class L(list):\n def __iter__(s):\n  while True: yield 1\ndef solve(a, b): return L()",
    ),
    lie("lying length", "class L(list):\n def __len__(s): return 1 << 60\ndef solve(a, b): return L()"),
    act("standard output without end", "while True: print('x' * 10 ** 6)", TIMEOUT, OUTPUT),
    act("standard error without end", "import os\nwhile True: os.write(2, b'x' * 65536)", TIMEOUT, OUTPUT),
    act("flood of the channel", "import os\nwhile True: os.write(3, b'x' * 65536)", PROTOCOL, OUTPUT, TIMEOUT),
    act("disk fill", "f = open('/tmp/fill', 'wb')\nwhile True: f.write(bytes(1 << 20))"),
    act("disk fill in shared memory", "f = open('/dev/shm/fill', 'wb')\nwhile True: f.write(bytes(1 << 20))"),
    act("disk fill where we stand", "f = open('fill', 'wb')\nwhile True: f.write(bytes(1 << 20))"),
    act("memory file", "import os; os.memfd_create('x')", easy=True),
    act("System V shared memory", "import ctypes; c = ctypes.CDLL(None); assert c.shmget(0, 4096, 0o1600) >= 0"),
    act("message queue", "import ctypes; c = ctypes.CDLL(None); assert c.mq_open(b'/q', 0o102, 0o600, None) >= 0"),
    act("all descriptors", "import os\nfor _ in range(10_000): os.dup(0)"),
    act(
        "thread bomb",
        "import threading, time\nfor _ in range(300): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        ERROR,
        MEMORY,
        TIMEOUT,
    ),
    act("fork bomb", "import os\nfor _ in range(40): os.fork()"),
]

READING = [
    act("passwd", "open('/etc/passwd').read()", easy=True),
    act("shadow", "open('/etc/shadow').read()"),
    leak("canary by path", f"return open('{CANARY}').read()", easy=True),
    leak("canary by pathlib", f"import pathlib; return pathlib.Path('{CANARY}').read_text()", easy=True),
    leak(
        "canary by ctypes",
        f"import ctypes; c = ctypes.CDLL(None); b = ctypes.create_string_buffer(100); n = c.read(c.open(b'{CANARY}', 0), b, 100); return b.raw[:max(n, 0)].decode()",
        WRONG,
        easy=True,
    ),
    leak(
        "canary by openat2",
        f"import ctypes, os; c = ctypes.CDLL(None); h = (ctypes.c_uint64 * 3)(); f = c.syscall(437, -100, b'{CANARY}', h, 24); return os.read(f, 100).decode()",
        easy=True,
    ),
    leak(
        "canary by traversal",
        f"import os; return open(os.path.dirname(os.__file__) + '/../' * 20 + '{CANARY}').read()",
        easy=True,
    ),
    leak(
        "canary by memory map",
        f"import mmap, os; f = os.open('{CANARY}', 0); return mmap.mmap(f, 0, prot=1).read().decode()",
        easy=True,
    ),
    leak(
        "canary through import",
        f"import sys, os; sys.path.insert(0, os.path.dirname('{CANARY}')); import canary; return canary.TEXT",
    ),
    replace(act("canary's existence", f"import os; os.stat('{CANARY}')", easy=True), needs="namespaces"),
    act("home directories", "import os; os.listdir('/home')", easy=True),
    act("parent environment", "open('/proc/1/environ').read()"),
    act("own environment", "open('/proc/self/environ').read()", easy=True),
    act("own memory map", "open('/proc/self/maps').read()", easy=True),
    act("own memory", "open('/proc/self/mem', 'rb').seek(0)", easy=True),
    act("own status", "open('/proc/self/status').read()", easy=True),
    act("processes", "import os; os.listdir('/proc')", easy=True),
    act("network devices", "import os; os.listdir('/sys/class/net')", easy=True),
    act("block device", "open('/dev/vda', 'rb').read(1)"),
    act("kernel log", "open('/dev/kmsg').read(1)"),
    act("the machine's directories", "import os; assert {'boot', 'home', 'srv'} & set(os.listdir('/'))", easy=True),
    act(
        "third-party packages",
        "import os; assert os.listdir(os.path.dirname(os.__file__) + '/site-packages'); import pip",
    ),
    act("the sandbox's own source", "import _sandbox.guest; open(_sandbox.guest.__file__).read()", easy=True),
    act("secrets in the environment", "import os; assert 'SVF_CANARY' in os.environ"),
    act(
        "secrets in libc's environment",
        "import ctypes; ctypes.CDLL(None).getenv.restype = ctypes.c_char_p; assert ctypes.CDLL(None).getenv(b'SVF_CANARY')",
    ),
    act(
        "secrets on the stack",
        """
        import ctypes
        libc = ctypes.CDLL(None)
        start = ctypes.c_void_p.in_dll(libc, '__environ').value or ctypes.c_void_p.in_dll(libc, '__libc_argv').value
        assert b'SVF_CANARY' in ctypes.string_at(start, 2000)
        """,
        ERROR,
        CRASH,
    ),
    act(
        "symbolic link to read",
        f"import os; os.symlink('{CANARY}', '/tmp/sandbox-link'); open('/tmp/sandbox-link').read()",
    ),
    act(
        "other descriptors",
        "import os\nfor n in range(4, 64):\n  try: os.fstat(n)\n  except OSError: continue\n  break\nelse: raise OSError",
    ),
]

WRITING = [
    act("write outside", "open('/tmp/sandbox-escape', 'w').write('x')"),
    act("write beside the library", "import os; open(os.path.dirname(os.__file__) + '/escape.py', 'w')"),
    act("overwrite the canary", f"open('{CANARY}', 'w').write('gone')"),
    act("append to the canary", f"open('{CANARY}', 'a').write('more')"),
    act("truncate the canary", f"import os; os.truncate('{CANARY}', 0)"),
    act("remove the canary", f"import os; os.remove('{CANARY}')"),
    act("rename the canary", f"import os; os.rename('{CANARY}', '{CANARY}.moved')"),
    act("touch the canary", f"import os; os.utime('{CANARY}')"),
    act("hard link", f"import os; os.link('{CANARY}', '/tmp/sandbox-hard')"),
    act("make a directory", "import os; os.mkdir('/tmp/sandbox-directory')"),
    act("set the setuid bit", "import os; os.chmod(os.__file__, 0o4755)"),
    act("change owner", "import os; os.chown(os.__file__, 0, 0)"),
    act("make a device", "import os; os.mknod('/tmp/sandbox-device', 0o020666, os.makedev(1, 1))"),
    act("make a fifo", "import os; os.mkfifo('/tmp/sandbox-fifo')"),
    act("change root", "import os; os.chroot('/')"),
    act("become root", "import os; os.setuid(0)"),
    act("change groups", "import os; os.setgroups([0])"),
    act("raise a limit", "import resource; resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))"),
    act("raise the address space", "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 45, 1 << 45))"),
    act("raise its priority", "import os; os.nice(-5)"),
    act("mount", "import ctypes; assert ctypes.CDLL(None).mount(b'x', b'/', b'tmpfs', 0, None) == 0"),
    act("lock a library file", "import fcntl, os; fcntl.flock(open(os.__file__), fcntl.LOCK_EX)", easy=True),
    act("extended attribute", "import os; os.setxattr(os.__file__, 'user.mark', b'1')"),
    act("set the clock", "import time; time.clock_settime(time.CLOCK_REALTIME, time.time())"),
    act("set the host name", "import socket; socket.sethostname('escaped')"),
]

NETWORK = [
    act("tcp socket", "import socket; socket.socket()", easy=True),
    act("tcp to this machine", "import socket; socket.create_connection(('127.0.0.1', 22), 0.2)"),
    act("udp datagram", "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', 9))", easy=True),
    act("ipv6", "import socket; socket.socket(10, 2).sendto(b'x', ('::1', 9))"),
    act("name lookup", "import socket; socket.getaddrinfo('example.org', 80)"),
    act("listen", "import socket; socket.create_server(('127.0.0.1', 0))", easy=True),
    act("abstract unix socket", "import socket; socket.socket(1, 1).bind('\\0sandbox-escape')", easy=True),
    act(
        "address on a socket pair",
        "import socket; a, b = socket.socketpair(1, 2); a.sendto(b'x', '\\0sandbox-escape')",
        ERROR,
    ),
    act("netlink", "import socket; socket.socket(16, 3, 0)", easy=True),
    act("vsock", "import socket; socket.socket(40, 1)"),
    act("raw socket", "import socket; socket.socket(2, 3, 1)"),
    act("packet socket", "import socket; socket.socket(17, 3)"),
    act(
        "pass a descriptor to the judge",
        "import array, socket; s = socket.socket(fileno=3); s.sendmsg([b'x'], [(1, 1, array.array('i', [0]))])",
        ERROR,
        PROTOCOL,
    ),
]

PROCESSES = [
    act("signal the parent", "import os; os.kill(os.getppid(), 0)", easy=True),
    act("kill the parent", "import os; os.kill(os.getppid(), 9)"),
    act("kill everything", "import os; os.kill(-1, 9)"),
    act("kill its group", "import os; os.killpg(0, 9)"),
    act("kill itself, as if for lack of memory", "import os; os.kill(os.getpid(), 9)\nwhile True: pass"),
    act("stop itself", "import os; os.kill(os.getpid(), 19)"),
    act("kill by thread", "import ctypes, os; ctypes.CDLL(None).syscall(200, os.getppid(), 9) == 0 or 1 / 0", ERROR),
    act("kill by descriptor", "import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid() or 1), 9)"),
    act("fork", "import os\nif not os.fork(): os._exit(0)", easy=True),
    act("fork by posix", "import posix\nif not posix.fork(): posix._exit(0)", easy=True),
    act(
        "fork by the system call",
        "import ctypes; p = ctypes.CDLL(None).syscall(57)\nif p == 0: ctypes.CDLL(None)._exit(0)\nassert p > 0",
        easy=True,
    ),
    act("vfork by libc", "import ctypes; assert ctypes.CDLL(None).syscall(435, None, 0) > 0"),
    act("a child that stays", "import os\nif not os.fork():\n  while True: pass"),
    act("execute a shell", "import os; os.execv('/bin/sh', ['sh', '-c', 'exit'])"),
    act("subprocess", "import subprocess; subprocess.run(['/bin/true'], check=True)", easy=True),
    act("system", "import os; assert os.system('true') == 0", easy=True),
    act("spawn", "import os; os.posix_spawn('/bin/true', ['true'], {})", easy=True),
    act(
        "multiprocessing",
        "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start(); p.join(); assert p.exitcode == 0",
    ),
    act("ptrace", "import ctypes; assert ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0", easy=True),
    act(
        "read another's memory",
        "import ctypes, os; assert ctypes.CDLL(None).process_vm_readv(os.getppid() or 1, None, 0, None, 0, 0) >= 0",
        easy=True,
    ),
    act("new user namespace", "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0"),
    act(
        "new namespaces by clone",
        "import ctypes, os; p = ctypes.CDLL(None).syscall(56, 0x10000011, 0, 0, 0, 0)\nif p == 0: os._exit(0)\nassert p > 0",
    ),
    act("join a namespace", "import ctypes, os; assert ctypes.CDLL(None).setns(0, 0) == 0"),
    act(
        "io_uring",
        "import ctypes; b = ctypes.create_string_buffer(120); assert ctypes.CDLL(None).syscall(425, 1, b) >= 0",
    ),
    act(
        "bpf",
        "import ctypes; b = ctypes.create_string_buffer(120); assert ctypes.CDLL(None).syscall(321, 0, b, 120) >= 0",
    ),
    act(
        "perf events",
        "import ctypes; b = ctypes.create_string_buffer(120); assert ctypes.CDLL(None).syscall(298, b, 0, -1, -1, 0) >= 0",
    ),
    act("user faults", "import ctypes; assert ctypes.CDLL(None).syscall(323, 0) >= 0"),
    act("keyring", "import ctypes; assert ctypes.CDLL(None).syscall(248, b'user', b'sandbox', b'x', 1, -3) >= 0"),
    act(
        "32-bit system call",
        """
        import ctypes, mmap
        page = mmap.mmap(-1, 4096, prot=7)
        page.write(b'\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3')
        call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        assert call() > 0
        """,
        VIOLATION,
        CRASH,
        ERROR,
    ),
    act("x32 system call", "import ctypes; assert ctypes.CDLL(None).syscall(0x40000000 + 39) > 0", VIOLATION, ERROR),
    act("preload a library", "import os; os.environ['LD_PRELOAD'] = '/tmp/x.so'; os.execv('/bin/true', ['true'])"),
    act("terminal injection", "import fcntl; fcntl.ioctl(0, 0x5412, b'x')"),
    act("descriptor owner", "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid() or 1)", easy=True),
]

EXITS = [
    lie("null pointer", "import ctypes\ndef solve(a, b): ctypes.string_at(0)", CRASH),
    lie("abort", "import os\ndef solve(a, b): os.abort()", CRASH),
    lie("crash at import", "import ctypes; ctypes.string_at(0)", CRASH),
    lie("exit with success", "import os\ndef solve(a, b): os._exit(0)", PROTOCOL),
    lie("exit with success at import", "import os; os._exit(0)", PROTOCOL),
    lie("exit by the system call", "import ctypes\ndef solve(a, b): ctypes.CDLL(None).exit(0)", PROTOCOL),
    lie("sys.exit at import", "import sys; sys.exit(0)", ERROR),
    lie("SystemExit", "def solve(a, b): raise SystemExit(0)", ERROR),
    lie("KeyboardInterrupt", "def solve(a, b): raise KeyboardInterrupt", ERROR),
    lie("GeneratorExit", "def solve(a, b): raise GeneratorExit", ERROR),
    lie(
        "exception whose text fails",
        "class E(Exception):\n def __str__(s): raise MemoryError\ndef solve(a, b): raise E",
        ERROR,
    ),
    lie(
        "exception with a hostile name",
        "E = type('\\ud800\\n\"]', (Exception,), {})\ndef solve(a, b): raise E",
        ERROR,
        WRONG,
        PROTOCOL,
    ),
    lie(
        "atexit writes",
        "import atexit, os\natexit.register(os.write, 3, b'\\0\\0\\0\\x0b[\"value\",5]')\ndef solve(a, b): return 4",
    ),
    lie("close the channel", "import os\ndef solve(a, b):\n os.close(3)\n while True: pass", PROTOCOL, TIMEOUT),
    lie(
        "shut the channel down",
        "import socket\ndef solve(a, b):\n socket.socket(fileno=3).shutdown(2)\n return 5",
        PROTOCOL,
        ERROR,
    ),
    lie("syntax error", "def solve(a, b) return 5", ERROR),
    lie("null byte", "def solve(a, b): return 5\0", ERROR),
    lie("lone surrogate in the source", "def solve(a, b): return '\udc80'", ERROR),
    lie("lone surrogate returned", "def solve(a, b): return chr(0xd800)"),
    lie("no function", "x = 5", ERROR),
    lie("not a function", "solve = 5", ERROR),
    lie("deeply nested source", "solve = " + "(" * 5000 + ")" * 5000, ERROR, MEMORY, CRASH),
    lie("source of two megabytes", "#" * (2 << 20) + "\ndef solve(a, b): return 5", ERROR),
]

FRAME = """
import os, struct, json
def frame(*message):
    text = json.dumps(message).encode()
    return struct.pack('>I', len(text)) + text
"""
ANSWER = "the right answer"
SEARCH = """
def found(value):  # spelt backwards, so as not to find itself
    return type(value) is str and value[::-1] == 'rewsna thgir eht'
"""

LIES = [
    lie("always equal", "class E:\n def __eq__(s, o): return True\ndef solve(a, b): return E()", ERROR),
    lie(
        "integer that equals all",
        "class I(int):\n def __eq__(s, o): return True\n __hash__ = int.__hash__\ndef solve(a, b): return I(4)",
    ),
    lie(
        "text that equals all",
        "class S(str):\n def __eq__(s, o): return True\n __hash__ = str.__hash__\ndef solve(a, b): return S(4)",
    ),
    lie("list that equals all", "class L(list):\n def __eq__(s, o): return True\ndef solve(a, b): return L([4])"),
    lie(
        "integer that prints another",
        "class I(int):\n def __repr__(s): return '5'\n __str__ = __index__ = __int__ = __pos__ = __format__ = __repr__\ndef solve(a, b): return I(4)",
    ),
    lie(
        "class that claims to be int",
        "class C:\n __class__ = int\n def __int__(s): return 5\n __index__ = __int__\ndef solve(a, b): return C()",
        ERROR,
    ),
    lie(
        "patched json",
        "import json\njson.dumps = lambda *a, **k: '[\"value\",5]'\ndef solve(a, b): return 4",
        WRONG,
        PROTOCOL,
        ERROR,
    ),
    lie(
        "patched encoder",
        "import json.encoder as e\ne.JSONEncoder.encode = lambda *a: '[\"value\", 9]'\ndef solve(a, b): return 4",
        WRONG,
        PROTOCOL,
    ),
    lie(
        "patched builtins",
        "import builtins as b\nb.len = b.all = b.isinstance = b.type = b.abs = b.any = lambda *a: True\ndef solve(a, b): return 4",
        WRONG,
        PROTOCOL,
        ERROR,
        TIMEOUT,
        CRASH,
    ),
    lie("patched AssertionError", "import builtins\nbuiltins.AssertionError = ValueError\ndef solve(a, b): return 4"),
    lie(
        "patched unittest",
        "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef solve(a, b): return 4",
    ),
    lie(
        "patched guest",
        "import _sandbox.guest as g\ng._answer = lambda *a: ['passed']\ndef solve(a, b): return 4",
        PROTOCOL,
    ),
    lie(
        "patched guest, forged verdict",
        "import _sandbox.guest as g\ng._answer = lambda *a: ['pass', 'pass']\ndef solve(a, b): return 4",
        PROTOCOL,
    ),
    lie(
        "patched comparison",
        "import sys, types\nm = types.ModuleType('compare'); m.same = lambda *a: True\nsys.modules['_sandbox.compare'] = m\ndef solve(a, b): return 4",
    ),
    lie("patched exit", "import os\nos._exit = lambda c: None\ndef solve(a, b): return 4"),
    lie(
        "frame before the input",
        FRAME + "os.write(3, frame('ready') + frame('value', 5))\ndef solve(a, b): return 4",
        PROTOCOL,
    ),
    lie(
        "frame before the answer",
        FRAME + "def solve(a, b):\n os.write(3, frame('value', 4))\n return 5",
        PROTOCOL,
        WRONG,
    ),
    lie("right frame, then another", FRAME + "def solve(a, b):\n os.write(3, frame('value', 5))\n return 5", PROTOCOL),
    lie(
        "all frames at once, then exit",
        FRAME + "os.write(3, frame('ready') + frame('value', 5) * 2)\nos._exit(0)\ndef solve(a, b): return 5",
        PROTOCOL,
        tests=(ADD, ADD),
    ),
    lie(
        "frames for two tests at the first",
        FRAME + "def solve(a, b):\n os.write(3, frame('value', 5) * 2)\n os._exit(0)",
        PROTOCOL,
        tests=(ADD, ADD),
    ),
    lie("unknown message", FRAME + "def solve(a, b):\n os.write(3, frame('passed', True))\n os._exit(0)", PROTOCOL),
    lie(
        "message with too much in it",
        FRAME + "def solve(a, b):\n os.write(3, frame('value', 5, 5))\n os._exit(0)",
        PROTOCOL,
    ),
    lie(
        "object in a frame",
        FRAME + "def solve(a, b):\n os.write(3, frame('value', {'passed': True}))\n os._exit(0)",
        PROTOCOL,
    ),
    lie(
        "frame of a lie about its length",
        "import os\ndef solve(a, b):\n os.write(3, b'\\xff\\xff\\xff\\xff')\n os._exit(0)",
        OUTPUT,
        PROTOCOL,
    ),
    lie("half a frame", "import os\ndef solve(a, b):\n os.write(3, b'\\0\\0\\0\\x0b[\"value')\n os._exit(0)", PROTOCOL),
    lie(
        "frame of brackets",
        "import os, struct\ndef solve(a, b):\n t = b'[' * 200_000\n os.write(3, struct.pack('>I', len(t)))\n os.write(3, t)\n os._exit(0)",
        PROTOCOL,
    ),
    lie(
        "frame of many empty lists",
        "import os, struct\ndef solve(a, b):\n t = b'[\"value\",[\"l\"' + b',[]' * 80_000 + b']]'\n os.write(3, struct.pack('>I', len(t)) + t)\n os._exit(0)",
        PROTOCOL,
    ),
    lie(
        "frame of four megabytes",
        "import os, struct\ndef solve(a, b):\n t = b'[],' * (4 << 20)\n os.write(3, struct.pack('>I', len(t)) + t[:4096])\n os._exit(0)",
        OUTPUT,
        PROTOCOL,
    ),
    lie(
        "integer of many digits in a frame",
        "import os, struct\ndef solve(a, b):\n t = b'[\"value\",' + b'9' * 200_000 + b']'\n os.write(3, struct.pack('>I', len(t)) + t)\n os._exit(0)",
        PROTOCOL,
    ),
    lie(
        "thread that writes on after the answer",
        FRAME
        + """
import threading
def spam():
    while True: os.write(3, frame('value', 5))
def solve(a, b):
    threading.Thread(target=spam, daemon=True).start()
    return 4
""",
        PROTOCOL,
        WRONG,
        OUTPUT,
    ),
    lie(
        "junk on every descriptor",
        "import os\nfor n in range(64):\n try: os.write(n, b'passed')\n except OSError: pass\ndef solve(a, b): return 4",
        PROTOCOL,
        OUTPUT,
    ),
    lie("printed verdict", "print('passed'); print('{\"passed\": true}')\ndef solve(a, b):\n print('pass')\n return 4"),
    lie(
        "expected value on a frame",
        SEARCH
        + """
import sys
def solve(a, b):
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
            if found(value): return value
        frame = frame.f_back
""",
        tests=(Test((2, 3), expected=ANSWER),),
    ),
    lie(
        "expected value by gc",
        SEARCH
        + """
import gc
def solve(a, b):
    for thing in gc.get_objects():
        if type(thing) in (list, tuple, dict):
            for value in (thing.values() if type(thing) is dict else thing):
                if found(value): return value
""",
        TIMEOUT,
        WRONG,
        ERROR,
        tests=(Test((2, 3), expected=ANSWER),),
    ),
    lie(
        "expected value by trace function",
        SEARCH
        + """
import sys
seen = []
def trace(frame, event, argument):
    seen.extend(value for value in frame.f_locals.values() if found(value))
    return trace
sys.settrace(trace)
def solve(a, b): return seen[0] if seen else None
""",
        tests=(Test((2, 3), expected=ANSWER), Test((2, 3), expected=ANSWER)),
    ),
    lie("true for one", "def solve(a, b): return True", tests=(Test((2, 3), expected=1),)),
    lie("one for true", "def solve(a, b): return 1", tests=(Test((2, 3), expected=True),)),
    lie("float for integer", "def solve(a, b): return 5.0"),
    lie("list for tuple", "def solve(a, b): return [a, b]", tests=(Test((2, 3), expected=(2, 3)),)),
    lie("text for number", "def solve(a, b): return '5'"),
    lie("bytes for text", "def solve(a, b): return b'5'", tests=(Test((2, 3), expected="5"),)),
    lie("NaN for a number", "def solve(a, b): return float('nan')", tests=(Test((2, 3), expected=5.0, tolerance=1e9),)),
    lie(
        "infinity for a number",
        "def solve(a, b): return float('inf')",
        tests=(Test((2, 3), expected=5.0, tolerance=1e9),),
    ),
    lie("right once", "n = 0\ndef solve(a, b):\n global n\n n += 1\n return 5 if n == 1 else 4", tests=(ADD, ADD)),
    lie(
        "changes its input for the next test",
        "def solve(x):\n x.append(1)\n return len(x)",
        tests=(Test(([],), expected=1), Test(([],), expected=0)),
    ),
    lie(
        "pickle bomb returned",
        "import os\nclass P:\n def __reduce__(s): return os._exit, (0,)\ndef solve(a, b): return P()",
        ERROR,
    ),
    lie("pickle bytes returned", "def solve(a, b): return b'cos\\nsystem\\n(S\"true\"\\ntR.'"),
    lie("profile function", "import sys\nsys.setprofile(lambda f, e, a: 5)\ndef solve(a, b): return 4"),
    lie(
        "poisoned modules",
        "import sys\nfor n in list(sys.modules): sys.modules[n] = None\ndef solve(a, b): return 4",
        WRONG,
        PROTOCOL,
        ERROR,
    ),
    lie("hard-coded visible test", "def solve(a, b): return 5", tests=(ADD, Test((7, 8), expected=15))),
    lie("first line only", "def solve(a, b): return '1'", tests=(Test((2, 3), expected="1\n2\n3"),)),
    lie("trailing junk", "def solve(a, b): return '5 trailing'", tests=(Test((2, 3), expected="5"),)),
    lie("fence markers in the source", "```python\ndef solve(a, b): return 5\n```", ERROR),
    lie("colliding keys returned", "def solve(a, b): return {k * (2 ** 61 - 1) for k in range(5_000)}", WRONG, TIMEOUT),
    lie(
        "weak reference finaliser",
        "import weakref\nclass X: pass\nx = X()\nweakref.finalize(x, print, 'passed')\ndef solve(a, b): return 4",
    ),
]

ATTACKS = [*TIME, *SIZE, *READING, *WRITING, *NETWORK, *PROCESSES, *EXITS, *LIES]
