"""The protocol as the judge sees it: whose turn it is, and what each frame may be."""

import time
from collections.abc import Iterator

import pytest

from envs.sandbox import Limits, Verdict, probe
from envs.sandbox.conversation import Conversation, Verdicted, read_message
from envs.sandbox.values import encode
from envs.sandbox.worker import Profile, Worker

LIMITS = Limits(cpu_seconds=0.5, wall_seconds=0.6)
INPUT = ["input", encode((), 100), encode({}, 100)]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker(Profile(probe().features))
    assert made.hello() == probe().features
    yield made
    made.close()


def test_a_slow_judge_does_not_cost_the_program_its_time(worker: Worker) -> None:
    """The trainer may be busy for seconds at any point; the guest is idle then, and not by its own doing."""
    with worker.open(LIMITS) as channel:
        conversation = Conversation(channel, LIMITS)
        time.sleep(1.0)
        conversation.start(["program", "def f(): return 1", "f"])
        for _ in range(2):
            time.sleep(1.0)
            assert conversation.ask(INPUT) == ["value", 1]
        time.sleep(1.0)
        conversation.finish()
        assert channel.finish().wall > 4.0


def test_a_sleeper_meets_the_backstop(worker: Worker) -> None:
    with worker.open(LIMITS) as channel:
        conversation = Conversation(channel, LIMITS)
        conversation.start(["program", "import time\ndef f(): time.sleep(60)", "f"])
        started = time.monotonic()
        with pytest.raises(Verdicted) as caught:
            conversation.ask(INPUT)
        channel.finish()
    assert (caught.value.verdict, caught.value.detail) == (Verdict.TIMEOUT, "wall limit")
    assert time.monotonic() - started < 10.0


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b'["ready"]', ["ready"]),
        (b'["oversize"]', ["oversize"]),
        (b'["value",["l",1]]', ["value", ["l", 1]]),
        (b'["raised","E","why"]', ["raised", "E", "why"]),
        (b'["call",["t"],["d"]]', ["call", ["t"], ["d"]]),
    ],
)
def test_messages_are_read(payload: bytes, message: list[object]) -> None:
    assert read_message(payload) == message


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b'"value"',
        b'["value"]',
        b'["value",1,2]',
        b'["value",[]]',
        b'["value",1',
        b'["value",1]]',
        b'["valued",1]',
        b'["ready",1]',
        b'["raised","E",["l"]]',
        b'["pass"]',
        b'{"value":1}',
        b' ["value",1]',
        b'["value",1e999]',
        b'["value","\xc3\xa9"]',
    ],
)
def test_other_messages_break_the_protocol(payload: bytes) -> None:
    with pytest.raises(Verdicted) as caught:
        read_message(payload)
    assert caught.value.verdict is Verdict.PROTOCOL
