from collections import Counter

from envs.classify import _CLUES, _NEW_CLUES, new_topics, topics


def test_the_topic_is_that_of_most_lines():
    for task, clues in ((topics, _CLUES), (new_topics, _NEW_CLUES)):
        topic_of = {word: label for label, words in clues.items() for word in words.split()}
        for index in range(200):
            item = task.row("train", index)
            note = item.prompt.split("\n")[0]
            found = Counter(topic_of[word.strip(".,")] for word in note.split() if word.strip(".,") in topic_of)
            assert found.most_common(1)[0] == (item.facts["topic"], sum(found.values()) - 1), item.prompt
            assert len(found) == 2


def test_no_clue_belongs_to_two_topics():
    words = " ".join([*_CLUES.values(), *_NEW_CLUES.values()]).split()
    assert len(words) == len(set(words))


def test_the_last_label_named_counts():
    item = topics.row("test", 0)
    topic = item.facts["topic"]
    other = next(label for label in item.facts["labels"] if label != topic)
    assert topics.score(item, f" {topic}.").verdict == "pass"
    assert topics.score(item, f" {topic.upper()}!").reward == 1.0
    assert topics.score(item, f" {topic}, no, {other}").reward == 0.0
    assert topics.score(item, f" {other}{topic}").verdict == "no_answer"
    assert topics.score(item, " who knows").verdict == "no_answer"
