"""A prompt format as a Jinja `chat_template`, for every program that serves with the tokenizer alone.

In: a `PromptFormat`. Out: the text of a template that, given to `transformers`' `apply_chat_template`, renders exactly
what `llmforge.prompt.render` renders, for training conversations and (`add_generation_prompt=True`) for prompts, and
refuses what it refuses. It also writes a prompt without the cue that starts an answer: other programs try a template
out on conversations that end with the user. `{% generation %}` stands around the trained span of every answer, so
`return_assistant_tokens_mask` gives our mask of rows whose messages have no weights. It builds text only; no template
is run here.
"""

import json

from llmforge.config.prompt_format import PromptFormat
from llmforge.prompt.messages import BARE_TEMPLATE
from llmforge.prompt.render import Piece, Templates, compile_templates

_CONTENT = "{{- content -}}"
_NOT_TEXT = "the content of a message is not a string"
_ORDER = "after the system message, user and assistant take turns and the user begins"
_PROMPT_END = "a prompt ends with the user's message"


def chat_template(prompt_format: PromptFormat, special_tokens: frozenset[str]) -> str:
    """The Jinja template of a format; `special_tokens` as in `render`."""
    templates = compile_templates(prompt_format, special_tokens)
    trim = "|trim" if prompt_format.strip_whitespace else ""
    tags_always = _boolean(prompt_format.add_system_tags_even_if_message_is_empty)
    system = _if("has_system", _pieces(templates.system, {"instruction": "{{- system -}}"}))
    return "".join(
        [
            "{%- set turns = messages|rejectattr('role', 'equalto', 'system')|list -%}",
            "{%- set systems = messages|selectattr('role', 'equalto', 'system')|list -%}",
            _refuse("systems|length > 1", "at most one system message is allowed"),
            _refuse("not turns", "there is no user message"),
            _refuse("messages|selectattr('tool_calls')|list", "a message has tool_calls, which have no place here"),
            _refuse("systems and systems[0]['content'] is not string", _NOT_TEXT),
            "{%- set system = (systems[0]['content'] if systems else "
            + f"{_string(prompt_format.default_system_message)}){trim} -%}}",
            f"{{%- set has_system = system != '' or {tags_always} -%}}",
            _set_system_turn(prompt_format),
            _literal(prompt_format.bos),
            "" if prompt_format.system_in_user else system,
            "{%- for message in turns -%}",
            _refuse("message['content'] is not string", _NOT_TEXT),
            f"{{%- set content = message['content']{trim} -%}}",
            _refuse(_is_out_of_order(prompt_format), _ORDER),
            _refuse(_empty_content(prompt_format), "a message has empty content"),
            _turn(prompt_format, templates, system),
            "{%- endfor -%}",
            _refuse("add_generation_prompt and turns[-1]['role'] == 'assistant'", _PROMPT_END),
            _if("add_generation_prompt", _literal(prompt_format.trailing_assistant)),
        ]
    )


def _set_system_turn(prompt_format: PromptFormat) -> str:
    """Which turn holds the system text: the first, which is a user's, or in prompts the last one of a user."""
    if not prompt_format.system_in_last_user:
        return "{%- set system_turn = 0 -%}"
    return (
        "{%- set last = namespace(user=0) -%}{%- for message in turns -%}"
        + _if("message['role'] == 'user'", "{%- set last.user = loop.index0 -%}")
        + "{%- endfor -%}{%- set system_turn = 0 if turns[-1]['role'] == 'assistant' else last.user -%}"
    )


def _is_out_of_order(prompt_format: PromptFormat) -> str:
    """True in Jinja for a message that may not follow the one before it."""
    tool = [] if prompt_format.tool is None else ["tool"]
    may_follow = {"user": ["assistant"], "assistant": ["user", *tool], "tool": ["assistant", *tool]}
    allowed = f"{json.dumps(may_follow)}[loop.previtem['role']]"
    return f"message['role'] not in (['user'] if loop.first else {allowed})"


def _turn(prompt_format: PromptFormat, templates: Templates, system: str) -> str:
    system_here = _if("loop.index0 == system_turn", system)
    user = _pieces(templates.user, {"instruction": _CONTENT, "system": system_here})
    turn = f"{{%- if message['role'] == 'user' -%}}{user}"
    if prompt_format.tool is not None:
        turn += f"{{%- elif message['role'] == 'tool' -%}}{_pieces(templates.tool, {'instruction': _CONTENT})}"
    return f"{turn}{{%- else -%}}{_answer(templates)}{{%- endif -%}}"


def _answer(templates: Templates) -> str:
    trained = _literal(templates.answer_head) + _CONTENT + _literal(templates.terminator)
    marked = f"{{%- generation -%}}{trained}{{%- endgeneration -%}}"
    return _literal(templates.cue) + marked + _literal(templates.answer_tail)


def _pieces(pieces: tuple[Piece, ...], fields: dict[str, str]) -> str:
    return "".join(_literal(piece.text) if piece.field is None else fields[piece.field] for piece in pieces)


def _empty_content(prompt_format: PromptFormat) -> str:
    """True in Jinja for an empty message of a role whose template is not the bare content."""
    roles = [role for role in ("user", "assistant", "tool") if getattr(prompt_format, role) != BARE_TEMPLATE]
    return f"not content and message['role'] in {json.dumps(roles)}"


def _refuse(condition: str, reason: str) -> str:
    return _if(condition, f"{{{{- raise_exception({_string(reason)}) -}}}}")


def _if(condition: str, then: str) -> str:
    return f"{{%- if {condition} -%}}{then}{{%- endif -%}}" if then else ""


def _literal(text: str) -> str:
    return f"{{{{- {_string(text)} -}}}}" if text else ""


def _string(text: str) -> str:
    """A Jinja string literal: it has JSON's escapes, but would take a surrogate pair for two characters."""
    return json.dumps(text, ensure_ascii=False)


def _boolean(value: bool) -> str:
    return "true" if value else "false"
