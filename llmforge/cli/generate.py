"""`llmforge generate`: answers on stdout or in a file, everything else on stderr."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Literal

from llmforge.cli.generate_progress import GenerateProgress
from llmforge.cli.label_text import probabilities_text
from llmforge.cli.places import cache_folder
from llmforge.errors import ConfigError, DataError

if TYPE_CHECKING:
    from llmforge.answers.prompt_rows import CheckedRows, PromptRow
    from llmforge.answers.sampling import Sampling
    from llmforge.inference.answer_output import AnswerOutput, AnswerRecord
    from llmforge.inference.answer_rows import AnsweredWindow, Asked, Window
    from llmforge.inference.find import TrainedSource

OnInvalid = Literal["fail", "skip"]
_MOST_SKIPPED_SHOWN = 20


@dataclass(frozen=True)
class GenerateOptions:
    """What the command line asks for."""

    source: str
    checkpoint: str
    prompt: str | None
    messages: str | None
    output: str | None
    on_invalid: OnInvalid
    batch_size: int | None
    num_workers: int | None
    threshold: float | None = None


def run_generate(options: GenerateOptions, sampling: Sampling) -> None:
    """Answer one prompt as a stream of text, or every line of a file as one JSON object a line.

    A file is checked as a whole before a weight is loaded. Raises `LlmforgeError`.
    """
    if (options.prompt is None) == (options.messages is None):
        raise ConfigError("give either --prompt TEXT or --messages FILE.jsonl")
    if options.messages is None:
        _answer_prompt(options, sampling)
    else:
        _FileRun(options, options.messages, sampling).run()


def _answer_prompt(options: GenerateOptions, sampling: Sampling) -> None:
    for name, value in {"--output": options.output, "--num-workers": options.num_workers}.items():
        if value is not None:
            raise ConfigError(f"found {name} with --prompt, allowed is it with --messages FILE.jsonl")
    found = _find(options, sampling)
    from llmforge.inference.generate import open_generator

    generator = open_generator(found)
    conversation = generator.parse([{"role": "user", "content": options.prompt}])
    if generator.trained.classifier is not None:
        answer = generator.classify(conversation, options.threshold)
        print(answer.label, flush=True)
        print(probabilities_text(answer.probabilities), file=sys.stderr)
        return
    for piece in generator.stream(conversation, sampling):
        print(piece, end="", flush=True)
    print()


def _find(options: GenerateOptions, sampling: Sampling) -> TrainedSource:
    """The model, before the seconds that its libraries take to be imported."""
    from llmforge.answers.asked import check_asked
    from llmforge.inference.find import find_trained_model

    found = find_trained_model(options.source, options.checkpoint, cache_folder())
    check_asked(found.classifier, sampling, options.threshold)
    return found


class _FileRun:
    """The answers to a file."""

    def __init__(self, options: GenerateOptions, messages: str, sampling: Sampling) -> None:
        self._options = options
        self._messages = messages
        self._sampling = sampling

    def run(self) -> None:
        """Check, find what is done already, and answer the rest."""
        from llmforge.answers.prompt_file import read_prompt_file
        from llmforge.answers.prompt_rows import read_prompt_rows

        data = read_prompt_file(self._messages, cache_folder())
        rows = self._passed(read_prompt_rows(data, self._messages))
        source = _find(self._options, self._sampling)
        from llmforge.inference.load import quiet_transformers

        quiet_transformers()
        rows = self._passed(_check_prompts(rows, self._messages, source, self._sampling))
        output = self._open_output(source, rows, hashlib.sha256(data).hexdigest())
        num_done = 0 if output is None else output.num_done
        unit: Literal["tokens", "labels"] = "tokens" if source.classifier is None else "labels"
        with GenerateProgress(len(rows), num_done, unit) as progress:
            if num_done < len(rows):
                for answered in self._answer(source, rows, num_done, progress):
                    _write(answered.lines, output)
                    progress.stored(len(answered.lines))

    def _passed(self, checked: CheckedRows) -> list[PromptRow]:
        """The good rows. Raises one `DataError` that names every other one, unless these are to be left out."""
        if checked.problems and self._options.on_invalid == "fail":
            raise DataError("\n".join(checked.problems))
        shown = list(islice(checked.problems, _MOST_SKIPPED_SHOWN))
        more = len(checked.problems) - len(shown)
        for line in [*shown, *([f"... and {more} more"] if more else [])]:
            print(f"left out: {line}", file=sys.stderr)
        if not checked.rows:
            raise DataError(
                f"{self._messages}: no rows" + (" are left" if checked.problems else "")
                + "; expected one JSON object with `messages` per line"
            )  # fmt: skip
        return checked.rows

    def _open_output(self, source: TrainedSource, rows: Sequence[PromptRow], input_sha256: str) -> AnswerOutput | None:
        if self._options.output is None:
            return None
        from llmforge.inference.answer_output import open_answer_output

        record = _record(source, rows, input_sha256, self._sampling, self._options.threshold)
        return open_answer_output(self._options.output, record)

    @property
    def _asked(self) -> Asked:
        from llmforge.answers.batch import BatchLimits
        from llmforge.inference.answer_rows import Asked

        return Asked(self._sampling, self._options.threshold, BatchLimits(num_rows=self._options.batch_size))

    def _answer(
        self, source: TrainedSource, rows: Sequence[PromptRow], num_done: int, progress: GenerateProgress
    ) -> Iterator[AnsweredWindow]:
        from llmforge.inference.answer_rows import split_windows

        if self._options.num_workers is None:
            return self._answer_here(source, split_windows(rows, num_done), progress)
        return self._answer_on_ray(source, rows, num_done, progress)

    def _answer_here(
        self, source: TrainedSource, windows: Iterable[Window], progress: GenerateProgress
    ) -> Iterator[AnsweredWindow]:
        from llmforge.inference.answer_rows import WindowAnswerer
        from llmforge.inference.generate import Generator
        from llmforge.inference.load import load_trained_model

        progress.note("loading the model")
        answer = WindowAnswerer(Generator(load_trained_model(source)), self._asked)
        for window in windows:
            yield answer(window, progress.answered)

    def _answer_on_ray(
        self, source: TrainedSource, rows: Sequence[PromptRow], num_done: int, progress: GenerateProgress
    ) -> Iterator[AnsweredWindow]:
        from llmforge.inference.answer_on_ray import WorkerPlan, answer_on_ray
        from llmforge.train.cluster import start_ray

        num_workers = self._options.num_workers or 1
        progress.note("starting Ray")
        start_ray(verbose=False)
        progress.note(f"loading the model in {num_workers} workers")
        plan = WorkerPlan(source.uri, cache_folder(), self._asked)
        for answered in answer_on_ray(rows, num_done, plan, num_workers):
            progress.answered(len(answered.lines), answered.num_tokens)
            yield answered


def _check_prompts(rows: Sequence[PromptRow], messages: str, source: TrainedSource, sampling: Sampling) -> CheckedRows:
    from llmforge.answers.prompt_rows import check_prompt_rows
    from llmforge.inference.load import read_prompt_maker

    maker = read_prompt_maker(source)

    def check(row: PromptRow) -> None:
        if source.classifier is not None:
            row.check_no_probabilities()
        maker.room(len(maker.prompt_ids(maker.parse(row.messages))), sampling)

    return check_prompt_rows(rows, messages, check)


def _record(
    source: TrainedSource,
    rows: Sequence[PromptRow],
    input_sha256: str,
    sampling: Sampling,
    threshold: float | None,
) -> AnswerRecord:
    from llmforge.inference.answer_output import AnswerRecord

    if source.classifier is None:
        asked = {**asdict(sampling.over(source.generation)), "stop": list(sampling.stop)}
    else:
        asked = {"threshold": source.classifier.threshold if threshold is None else threshold}
    checksums = sorted((file.path, file.sha256) for file in source.checkpoint.files)
    return AnswerRecord(
        checkpoint=source.checkpoint.name,
        checkpoint_digest=hashlib.sha256(repr(checksums).encode()).hexdigest(),
        input_sha256=input_sha256,
        num_rows=len(rows),
        sampling=asked,
    )


def _write(lines: Sequence[str], output: AnswerOutput | None) -> None:
    if output is not None:
        output.write(lines)
        return
    for line in lines:
        print(line)
    sys.stdout.flush()
