"""What the next checkpoint of a classifier says of it: how it decides, and what its last evaluation has found.

In: the start of a run, and its evaluations. Out: files in a folder of rank 0, which checkpoints take over.
"""

from dataclasses import dataclass
from pathlib import Path

from llmforge.config.classifier import CLASSIFIER_FILE, Classifier
from llmforge.metrics.labels import LABEL_EVALUATION_FILE, LabelEvaluation


@dataclass(frozen=True)
class ClassifierFiles:
    """The files, as far as there are any; in other tasks there are none."""

    folder: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(self.folder / name for name in (CLASSIFIER_FILE, LABEL_EVALUATION_FILE))

    def begin(self, classifier: Classifier) -> None:
        """Write how it decides before its first evaluation, unless a checkpoint has said it."""
        path = self.folder / CLASSIFIER_FILE
        if not path.exists():
            path.write_text(classifier.model_dump_json(indent=2), encoding="utf-8")

    def write(self, evaluation: LabelEvaluation) -> None:
        """Replace them by what an evaluation has found."""
        (self.folder / CLASSIFIER_FILE).write_text(evaluation.classifier.model_dump_json(indent=2), encoding="utf-8")
        (self.folder / LABEL_EVALUATION_FILE).write_text(evaluation.model_dump_json(indent=2), encoding="utf-8")
