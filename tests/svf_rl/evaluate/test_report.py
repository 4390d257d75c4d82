"""The page parses, needs nothing from outside, and shows what models wrote as text."""

from html.parser import HTMLParser
from pathlib import Path

from svf_rl.evaluate.figures import INK
from svf_rl.evaluate.report import Findings, RunRecord, page, pooled, seeds_table

HOSTILE = "</td><script>alert(1)</script><img src=http://x onerror=alert(2)>&amp;"


class Reader(HTMLParser):
    """Counts tags and collects text and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text, self.addresses = "", list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def record(seed: int) -> RunRecord:
    summary = {"env": "math", "adapter": "svf", "seed": seed, "base_accuracy": 0.5, "expert_accuracy": 0.9, "difference": 0.4}
    summary |= {"difference_ci95": [0.3, 0.5], "n_test": 10, "trained_parameters": 5, "expert_bytes": 6, "seconds": 7.0}
    metrics = [{"step": i, "reward": 0.5 + 0.1 * i + 0.01 * seed, "tokens_per_answer": 20 - i} for i in range(3)]
    sample = {"prompt": "1 + 1 =", "answer": HOSTILE}
    z = {f"model.layers.{i}.mlp.{kind}": [1.0, 1.1] for i in range(2) for kind in ("up_proj", "down_proj")}
    return RunRecord(f"runs/{seed}", summary, metrics, [sample] * 4, z)


def test_the_page(tmp_path: Path) -> None:
    cells = [{"row": row, "column": column, "value": 0.5} for row in ("base", HOSTILE) for column in ("math", "human")]
    forgotten = {"tasks": ["a", "b"], "adapters": {"lora": {"accuracy": [[0.1, 0.2], [0.9, 0.2], [0.4, 0.8]]}}}
    page(Findings([record(0), record(1)], [{"cells": cells}], [forgotten]), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    reader = Reader()
    reader.feed(text)
    assert HOSTILE in reader.text
    assert not {"script", "img", "link", "iframe"} & set(reader.tags)
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in reader.addresses)
    assert reader.tags.count("svg") == 5 == len(list(tmp_path.glob("*.png")))
    assert INK not in text
    assert "currentColor" in text
    assert "prefers-color-scheme:dark" in text


def test_matrices_of_seeds_become_a_mean_with_its_interval() -> None:
    matrices = [{"cells": [{"row": "base", "column": "math", "value": value}]} for value in (0.4, 0.5, 0.6)]
    half = 4.302652729911275 * 0.1 / 3**0.5  # Student's t of two degrees of freedom
    assert f"50.0 [{100 * (0.5 - half):.1f},\u00a0{100 * (0.5 + half):.1f}]" in seeds_table(matrices)
    assert "3 matrices" in seeds_table(matrices)
    assert seeds_table(matrices[:1]) == ""


def test_matrices_of_seeds_are_pooled_and_others_stand_by_themselves() -> None:
    cells = [{"row": "probe", "column": "math", "value": value, "parts": {"a": n, "b": 4 - n}} for value, n in ((0.4, 1), (0.6, 4))]
    matrices = [{"cells": [cell]} for cell in cells]
    (one,) = pooled(matrices)["Mean of 2 matrices"]
    assert (one["value"], one["parts"]) == (0.5, {"a": 5, "b": 3})
    other = {"cells": [{"row": "probe", "column": "code", "value": 0.5}]}
    assert pooled([matrices[0], other]) == {"Matrix 1": cells[:1], "Matrix 2": other["cells"]}
