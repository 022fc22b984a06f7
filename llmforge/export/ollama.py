"""A Modelfile for Ollama: the prompt format as a template of Go, the stops, and the sampling of the job.

In: a `PromptFormat` and a `ServedFolder`. Out: the Modelfile, or a `ConfigError` that says why a format has no such
template. Text stands in it as a string of Go wherever it could be taken for something else. Ollama differs in two ways
that no template can mend: it leaves white space around messages as it is, and it makes control tokens of messages that
spell them.
"""

import json
from dataclasses import dataclass

from llmforge.config.prompt_format import PromptFormat
from llmforge.errors import ConfigError
from llmforge.export.launch import LABEL_ONLY, LaunchFile, ServedFolder
from llmforge.prompt.render import Piece, compile_templates

MODELFILE = "Modelfile"
_NOT_RAW = ("{", "}", '"', "\\")
"""What a raw text of the template cannot hold: delimiters of Go, and the quotes of the Modelfile."""
_LAST = "eq (len (slice $.Messages $index)) 1"


@dataclass(frozen=True)
class BeginOfText:
    """The token that Ollama itself puts before every prompt."""

    added: str | None
    """None where it puts none."""


def ollama_files(folder: ServedFolder, prompt_format: PromptFormat, begin: BeginOfText) -> list[LaunchFile]:
    """The Modelfile. Raises `ConfigError` where Ollama cannot serve the export."""
    if folder.adapter is not None:
        raise ConfigError(
            "--to ollama: found --adapter, allowed are merged weights: Ollama wants the base as a model of its own. "
            "Export without --adapter"
        )
    if not folder.is_local:
        raise ConfigError(
            f"--to ollama: found {folder.uri}, allowed is a local folder, which Ollama reads when it makes its model"
        )
    lines = [
        f"# Made by llmforge. Inside this folder: ollama create {folder.name} -f {MODELFILE}",
        "# Send messages without white space around them: training stripped it, and Ollama cannot."
        if prompt_format.strip_whitespace
        else "# Messages are taken as they stand, as in training.",
        "# A message that spells a control token becomes one in Ollama; llmforge keeps it as text.",
        *([f"# {LABEL_ONLY}"] if folder.classifier is not None else []),
        "FROM .",
        f'TEMPLATE """{go_template(prompt_format, begin)}"""',
        *_parameters(folder),
    ]
    return [LaunchFile(MODELFILE, "\n".join(lines) + "\n")]


def go_template(prompt_format: PromptFormat, begin: BeginOfText) -> str:
    """The template that writes for Ollama's messages what `render_prompt` writes. Raises `ConfigError`."""
    templates = compile_templates(prompt_format, frozenset())
    if prompt_format.system_in_last_user and prompt_format.tool is not None:
        raise _refusal("a system message in the last user turn, with tool messages behind it, cannot be placed")
    system = _system(prompt_format, templates.system)
    user = _pieces(templates.user, ".Content", _system_in_user(prompt_format, system))
    answer = templates.cue + templates.answer_head, templates.terminator + templates.answer_tail
    turns = f'{{{{ if eq .Role "user" }}}}{user}{{{{ else if eq .Role "assistant" }}}}'
    turns += f"{_text(answer[0])}{{{{ .Content }}}}{_text(answer[1])}"
    if prompt_format.tool is not None:
        turns += f'{{{{ else if eq .Role "tool" }}}}{_pieces(templates.tool, ".Content", "")}'
    return "".join(
        [
            _text(_begin(prompt_format, begin)),
            "{{ $first := true }}" if _is_in_first_user(prompt_format) else "",
            "" if prompt_format.system_in_user else system,
            f"{{{{ range $index, $message := .Messages }}}}{turns}{{{{ end }}}}{{{{ end }}}}",
            _text(prompt_format.trailing_assistant),
        ]
    )


def _begin(prompt_format: PromptFormat, begin: BeginOfText) -> str:
    """What the template itself has to write before a conversation."""
    if begin.added is None:
        return prompt_format.bos
    if prompt_format.bos.startswith(begin.added):
        return prompt_format.bos.removeprefix(begin.added)
    raise _refusal(
        f"it puts {begin.added} before every prompt, while the prompt format begins with "
        f"{prompt_format.bos or 'no such token'!r}"
    )


def _is_in_first_user(prompt_format: PromptFormat) -> bool:
    return prompt_format.system_in_user and not prompt_format.system_in_last_user


def _system(prompt_format: PromptFormat, pieces: tuple[Piece, ...]) -> str:
    default = prompt_format.default_system_message
    default = default.strip() if prompt_format.strip_whitespace else default
    is_always = bool(default) or prompt_format.add_system_tags_even_if_message_is_empty
    without = "".join(_text(piece.text if piece.field is None else default) for piece in pieces) if is_always else ""
    given = _pieces(pieces, "$.System", "")
    return f"{{{{ if $.System }}}}{given}" + (f"{{{{ else }}}}{without}" if without else "") + "{{ end }}"


def _system_in_user(prompt_format: PromptFormat, system: str) -> str:
    if not prompt_format.system_in_user:
        return ""
    if prompt_format.system_in_last_user:
        return f"{{{{ if {_LAST} }}}}{system}{{{{ end }}}}"
    return f"{{{{ if $first }}}}{system}{{{{ end }}}}{{{{ $first = false }}}}"


def _pieces(pieces: tuple[Piece, ...], content: str, system: str) -> str:
    fields = {"instruction": f"{{{{ {content} }}}}", "system": system}
    return "".join(_text(piece.text) if piece.field is None else fields[piece.field] for piece in pieces)


def _text(text: str) -> str:
    """A text as it stands where Ollama reads it so, else as a string of Go."""
    is_raw = not any(part in text for part in _NOT_RAW)
    if is_raw and all(character.isprintable() or character == "\n" for character in text):
        return text
    return f"{{{{ {_go_string(text)} }}}}" if text else ""


def _go_string(text: str) -> str:
    """JSON's escapes are Go's, but for characters beyond the basic plane."""
    return '"' + "".join(_go_character(character) for character in text) + '"'


def _go_character(character: str) -> str:
    if ord(character) > 0xFFFF:
        return f"\\U{ord(character):08x}"
    return json.dumps(character)[1:-1]


def _parameters(folder: ServedFolder) -> list[str]:
    generation = folder.generation
    numbers: dict[str, float | int | None] = {"num_predict": generation.max_tokens, "num_ctx": folder.context_length}
    numbers |= {"temperature": generation.temperature, "repeat_penalty": 1}
    # Its own defaults would narrow the choice.
    numbers |= {"top_k": generation.top_k or 0, "top_p": generation.top_p or 1, "min_p": generation.min_p or 0}
    stops = [*generation.stop_tokens, *generation.stop_texts]
    unsayable = [stop for stop in stops if '"' in stop or not all(c.isprintable() or c in "\n\t" for c in stop)]
    if unsayable:
        raise _refusal(f"the stop {unsayable[0]!r} cannot be written into a Modelfile")
    lines = [f"PARAMETER {name} {value}" for name, value in numbers.items() if value is not None]
    return [*lines, *(f'PARAMETER stop """{stop}"""' for stop in stops if stop)]


def _refusal(reason: str) -> ConfigError:
    return ConfigError(
        f"--to ollama: no template of Ollama writes the prompts of this run: {reason}. Serve it with llmforge "
        "serve, or export --to vllm"
    )
