"""What the model card says of a classifier: its labels, how it decides between them, and how to get probabilities.

In: a `Classifier`, and whether the folder holds an adapter alone. Out: lines of Markdown, with programs that run inside
the folder.
"""

from collections.abc import Iterator

from llmforge.config.classifier import CLASSIFIER_FILE, Classifier
from llmforge.export.markdown import quoted

_MERGED = ("AutoModelForCausalLM", ["from transformers import AutoModelForCausalLM, AutoTokenizer"])
_ADAPTER = (
    "AutoPeftModelForCausalLM",
    ["from peft import AutoPeftModelForCausalLM", "from transformers import AutoTokenizer"],
)


def label_lines(classifier: Classifier, *, is_adapter: bool) -> list[str]:
    """The lines of the section."""
    return [*_decision(classifier), "", *_programs(*(_ADAPTER if is_adapter else _MERGED))]


def _decision(classifier: Classifier) -> Iterator[str]:
    yield "The first token behind the prompt is the label:"
    yield ""
    for label, token in zip(classifier.labels, classifier.token_ids, strict=True):
        yield f"- {quoted(label)}, token {token}"
    yield ""
    yield "Probabilities are the softmax over the logits of these tokens alone, divided by the temperature"
    yield f"{classifier.temperature:g}, by which they come true as often as they say."
    if classifier.positive_label is None:
        yield "The label with the highest probability is the answer."
    else:
        yield f"From a probability of {classifier.threshold:g} on the answer is {quoted(classifier.positive_label)},"
        yield "below that the other label."
    yield f"`{CLASSIFIER_FILE}` holds all this."


def _programs(loader: str, imports: list[str]) -> Iterator[str]:
    yield from (
        "```python",
        "import llmforge",
        "",
        'messages = [{"role": "user", "content": "..."}]',
        'found = llmforge.load(".").classify(messages)',
        "print(found.label, found.probabilities)",
        "```",
        "",
        "The same without llmforge:",
        "",
        "```python",
        "import json",
        "from pathlib import Path",
        "",
        *imports,
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        f'model = {loader}.from_pretrained(".")',
        f'classifier = json.loads(Path("{CLASSIFIER_FILE}").read_text())',
        "",
        'messages = [{"role": "user", "content": "..."}]',
        'asked = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}',
        "prompt = tokenizer.apply_chat_template(messages, **asked)",
        'logits = model(**prompt).logits[0, -1, classifier["token_ids"]].float()',
        'probabilities = (logits / classifier["temperature"]).softmax(dim=0).tolist()',
        'print(dict(zip(classifier["labels"], probabilities)))',
        "```",
    )
