"""The studies by name, and the settings of `svf-rl study`. A new study is a line in each of the two.

A study is run(settings, folder, progress) -> dict. It leaves its figures and models in the folder; in the dictionary, "table" is
a list of flat records, printed and written as results.csv; "findings", if there are any, are sentences, printed below it.
Everything goes into results.json.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from svf_rl.progress import Progress
from svf_rl.settings import refuse_unknown
from svf_rl.studies import block, selective, soft_mask, superposition
from svf_rl.studies.block import BlockConfig
from svf_rl.studies.selective import SelectiveStudyConfig
from svf_rl.studies.soft_mask import SoftMaskStudyConfig
from svf_rl.studies.superposition import SuperpositionConfig

STUDIES: dict[str, Callable[[Any, Path, Progress], dict[str, Any]]] = {
    "superposition": superposition.run,
    "selective": selective.run,
    "soft_mask": soft_mask.run,
    "block": block.run,
}


@dataclass(frozen=True)
class StudyConfig:
    """`svf-rl study`; configs/study.yaml says what each key does."""

    name: str = "superposition"
    out: str | None = None
    superposition: SuperpositionConfig = field(default_factory=SuperpositionConfig)
    selective: SelectiveStudyConfig = field(default_factory=SelectiveStudyConfig)
    soft_mask: SoftMaskStudyConfig = field(default_factory=SoftMaskStudyConfig)
    block: BlockConfig = field(default_factory=BlockConfig)

    def __post_init__(self) -> None:
        refuse_unknown("study", self.name, list(STUDIES))
