from collections import Counter

from envs import classify, code, math
from envs.text import split_of
from envs.which_task import which_task


def test_the_inner_question_stays_in_its_own_split():
    """A question asked about in one split is no question of a family's other splits."""
    families = (math.word_problems, code.chains, classify.topics)
    tests = {task.row("test", i).prompt for task in families for i in range(300)}
    for index in range(300):
        item = which_task.row("train", index)
        assert split_of(item.key) == "train"
        assert item.prompt.split("\n\nWhich kind")[0] not in tests


def test_all_kinds_occur():
    kinds = Counter(which_task.row("train", i).facts["topic"] for i in range(200))
    assert set(kinds) == {"math", "code", "topic", "other"}
    assert min(kinds.values()) > 20
