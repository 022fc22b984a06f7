"""Whether what is asked for at an answer means anything to the model that is asked.

In: the `Classifier` of a model, or None for one that writes text, and what was asked. Out: a `ConfigError`, or nothing.
"""

from llmforge.answers.sampling import NOTHING_ASKED, Sampling
from llmforge.config.classifier import CLASSIFIER_FILE, Classifier
from llmforge.errors import ConfigError


def check_asked(classifier: Classifier | None, sampling: Sampling, threshold: float | None) -> None:
    """Raise `ConfigError` for what has no meaning for a model that is, or is not, a classifier."""
    if threshold is not None:
        _check_threshold(classifier, threshold)
    if classifier is None or sampling == NOTHING_ASKED:
        return
    asked = [f"{name} {value!r}" for name, value in vars(sampling).items() if value not in (None, ())]
    raise ConfigError(
        f"found {', '.join(asked)}, allowed with a classifier is none of these: it answers with one of its labels, by "
        "their probabilities, and draws nothing; leave them out"
    )


def _check_threshold(classifier: Classifier | None, threshold: float) -> None:
    found = f"threshold: found {threshold!r}"
    if not 0 < threshold < 1:
        raise ConfigError(f"{found}, allowed is a number above 0 and below 1: a probability; choose another")
    if classifier is None:
        raise ConfigError(
            f"{found}, allowed is none for a model that writes text: its checkpoint has no {CLASSIFIER_FILE}; leave it "
            "out, or name a run of task: classification"
        )
    if classifier.positive_label is None:
        raise ConfigError(
            f"{found} for the labels {', '.join(classifier.labels)}, allowed is none with more than two: the likeliest "
            "is the answer; leave it out, and decide by the probabilities"
        )
