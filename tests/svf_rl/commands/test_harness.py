"""`svf-rl harness` on tasks in a folder: what it writes, and the mistakes it names."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from svf_rl.base.load import Base
from svf_rl.evaluate import rows

ROWS = [{"question": f"What is {n}?", "choices": [" yes", " no"], "label": n % 2} for n in range(6)]
TASKS: dict[str, dict[str, Any]] = {
    "pick": {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "label"},
    "write": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": ["?"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
}


@pytest.fixture
def words(tmp_path: Path, architecture_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder with one task of each kind of request, and a random base."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, own in TASKS.items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
        text = "" if name == "read" else "{{question}}"
        spec = {"task": name, "test_split": "test", "doc_to_text": text, **data, **own}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(spec))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return ["harness", f"base={architecture_folders['llama']}", f"include={folder}"]


@pytest.mark.filterwarnings("ignore")
def test_tasks_of_every_kind_run_on_base_and_expert(
    svf_rl: Callable[..., Any], words: list[str], tiny_base: Base, save_expert_of: Callable[..., Path]
) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    found = {}
    for name, more in {"base": [], "one": [f"experts={save_expert_of('one')}"]}.items():
        assert svf_rl(*words, f"tasks=[{','.join(TASKS)}]", *more, f"out={name}").code == 0
        written = json.loads(Path(name, "harness.json").read_text())
        assert (written["row"], written["fingerprint"]) == (name, tiny_base.fingerprint)
        assert written["n-samples"] == {task: {"original": 6, "effective": 6} for task in TASKS}
        found[name] = written["results"]
    assert found["base"]["pick"]["acc,none"] in [n / 6 for n in range(7)]
    assert found["base"]["read"]["byte_perplexity,none"] > 1
    assert found["base"]["read"] != found["one"]["read"]


def test_without_the_extra_the_message_says_what_to_install(svf_rl: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("svf_rl.evaluate.harness", raising=False)
    monkeypatch.delitem(sys.modules, "svf_rl.evaluate.harness", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    assert svf_rl("harness", "tasks=x").mistake == "the lm-evaluation-harness is an extra: pip install 'svf-rl[lm-eval]'"
    assert svf_rl("harness").mistake.startswith("expected tasks=")


@pytest.mark.filterwarnings("ignore")
def test_unknown_names_are_mistakes(svf_rl: Callable[..., Any], words: list[str], save_expert_of: Callable[..., Path]) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    assert svf_rl(*words, "tasks=nothing").mistake.startswith("the harness knows no task 'nothing'; ")
    wrong = svf_rl(*words, "tasks=pick", f"experts={save_expert_of('one')}", "row=two").mistake
    assert wrong == f"expected row=<one of base, one, {', '.join(rows.DISPATCHERS)}>, found 'two'"
