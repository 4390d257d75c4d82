"""The studies by name, and the settings of `svf-rl study`. A new study is a line in each of the two.

A study is run(settings, folder, progress) -> dict. It leaves its figures and models in the folder; in the dictionary, "table" is
a list of flat records, printed and written as results.csv, and everything goes into results.json.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svf_rl.progress import Progress
from svf_rl.settings import refuse_unknown
from svf_rl.studies import superposition
from svf_rl.studies.superposition import SuperpositionConfig

STUDIES: dict[str, Callable[[Any, Path, Progress], dict[str, Any]]] = {
    "superposition": superposition.run,
}


@dataclass(frozen=True)
class StudyConfig:
    """`svf-rl study`; configs/study.yaml says what each key does."""

    name: str = "superposition"
    out: str | None = None
    superposition: SuperpositionConfig = field(default_factory=SuperpositionConfig)

    def __post_init__(self) -> None:
        refuse_unknown("study", self.name, list(STUDIES))
