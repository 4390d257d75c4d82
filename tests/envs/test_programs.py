"""What an answer means as a program, and what it earns; the right outcome of each answer is worked out by hand."""

import pytest

from envs.programs import Problem, ReferenceFault, checked, compares_bools, cut, defined, imports, programs, score_program, used
from envs.sources import Unusable
from envs.text import Item

START = 'def double(n):\n    """Twice n."""\n'
CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n"
PROBLEM = Problem(START, "    return 2 * n\n", "double", CHECK)
WHOLE = Problem("", "double = lambda n: n + n", "double", "assert double(2) == 4\nassert double(-1) == -2")
BODY = "    return 2 * n\n"
FUNCTION = "def double(n):\n    return 2 * n\n"
HELPED = "    return twice(n)\n\ndef twice(n):\n    return 2 * n\n"

RIGHT_BODIES = [
    BODY,
    HELPED,
    FUNCTION,
    "\n" + FUNCTION,
    f"{BODY}\n\nThis function returns twice its argument.",
    f"{BODY}\n\ndef triple(n):\n    return 3 *",
    f"{BODY}\nprint(double('",
    f"{BODY}```\nHope this helps!",
    f"Here you are:\n```python\n{FUNCTION}```\nIt works.",
    f"```\n{START}{BODY}```",
    f"```python\n{FUNCTION}",
    f"First:\n```python\nx = 1\n```\nthen\n```py\nimport math\n{FUNCTION}```\nand to test it\n```python\nprint(double(2))\n```",
    f"The body is\n```python\n{BODY}```",
    f"    ```python\n{FUNCTION}    ```",
]
WRONG = [
    "",
    "    pass\n",
    "    return n + 2\n" + "    ",
    "I do not know.",
    "```python\nx = 1\n```",
    "    return 2 *",
    "\x00",
    "    raise SystemExit",
]


@pytest.mark.parametrize("answer", RIGHT_BODIES)
def test_right_answers_to_a_started_function_earn_all(answer):
    score = score_program(PROBLEM, answer, "share")
    assert (score.reward, score.verdict, score.info) == (1.0, "pass", {"share": 1.0, "solved": 1.0})


@pytest.mark.parametrize(
    "answer", [FUNCTION, f"{FUNCTION}[DONE]\nfoo bar baz quux", f"```python\n{FUNCTION}```", f"def double(n):\n{HELPED}"]
)
def test_right_answers_that_are_whole_programs_earn_all(answer):
    assert score_program(WHOLE, answer, "all").reward == 1.0


@pytest.mark.parametrize("answer", WRONG)
def test_wrong_answers_earn_less(answer):
    for problem in (PROBLEM, WHOLE):
        score = score_program(problem, answer, "share")
        assert score.reward < 1.0
        assert score.verdict != "pass"


def test_the_share_of_tests_or_all_of_them():
    half = "    return 4\n"
    assert score_program(PROBLEM, half, "share").reward == 0.5
    assert score_program(PROBLEM, half, "all").reward == 0.0
    assert score_program(PROBLEM, half, "all").info == {"share": 0.5, "solved": 0.0}


def test_an_answer_that_runs_is_not_read_a_second_way():
    """The text is wrong, the block is right: two guesses are not one right answer."""
    assert score_program(PROBLEM, f"    return 0\n    '''\n```python\n{BODY}```\n'''", "all").reward == 0.0


def test_zero_for_false_satisfies_an_assertion_as_in_python():
    problem = Problem("", "def even(n): return n % 2 == 0", "even", "assert even(2) == True\nassert even(3) == False")
    assert score_program(problem, "def even(n):\n    return 1 - n % 2\n", "all").reward == 1.0
    assert score_program(problem, "def even(n):\n    return n % 2\n", "share").reward == 0.0
    assert compares_bools(problem.tests, "even")
    assert not compares_bools(WHOLE.tests, "double")


def test_a_row_whose_own_program_does_not_pass_is_at_fault_and_not_the_answer():
    generator = Problem("", "def double(n): yield 2 * n", "double", "assert list(double(2)) == [4]")
    with pytest.raises(ReferenceFault, match="reference program of double does not pass its own assertions here: error"):
        score_program(generator, "def double(n):\n    return [5]", "all")
    with pytest.raises(Unusable, match="a reference program that does not pass"):
        checked(Item("", "", "", {"problem": generator}))
    assert checked(Item("", "", "", {"problem": WHOLE})).facts["problem"] is WHOLE
    assert score_program(generator, "def double(n):\n    return [4]", "all").reward == 1.0


def test_cutting():
    assert cut(f"{BODY}\nclass X:", "double") == BODY + "\n"
    assert cut(BODY, "double") == BODY
    assert cut(f"import math\n{FUNCTION}\nassert double(1)", "double") == f"import math\n{FUNCTION}\n"


def test_few_programs_are_tried():
    assert len(programs(PROBLEM, "```\nx\n```\n" * 50 + "\nclass A\n" * 50)) <= 3
    assert programs(PROBLEM, BODY) == [START + BODY]


def test_hostile_answers_are_taken_apart_in_no_time():
    import time

    started = time.process_time()
    for text in (
        "```" * 50_000,
        "```\n" * 50_000,
        "\n" * 100_000,
        " " * 200_000,
        "def double" * 20_000,
        "\ndef double(" * 10_000,
        "a " * 100_000,
    ):
        programs(PROBLEM, text)
    assert time.process_time() - started < 1.0


def test_names_in_trusted_source():
    source = "import math as m\nfrom os.path import join\nclass A: pass\ndef f(): return g(A)\nx = y = 1\n"
    assert defined(source) == {"A", "f", "x", "y"}
    assert used("assert f(m.pi, A()) == z") == {"f", "m", "A", "z"}
    assert imports(source, {"m", "z"}) == ["import math as m"]
