"""A prompt format as a Jinja `chat_template`, for every program that serves with the tokenizer alone.

In: a `PromptFormat`. Out: the text of a template that, given to `transformers`' `apply_chat_template`, renders exactly
what `llmforge.prompt.render` renders, for training conversations and (`add_generation_prompt=True`) for prompts, and
refuses what it refuses. `{% generation %}` stands around the trained span, so `return_assistant_tokens_mask` gives our
mask. It builds text only; no template is run here.
"""

import json

from llmforge.config.prompt_format import PromptFormat
from llmforge.prompt.messages import BARE_TEMPLATE
from llmforge.prompt.render import Piece, Templates, compile_templates

_NOT_TEXT = "the content of a message is not a string"


def chat_template(prompt_format: PromptFormat, special_tokens: frozenset[str]) -> str:
    """The Jinja template of a format; `special_tokens` as in `render`."""
    templates = compile_templates(prompt_format, special_tokens)
    trim = "|trim" if prompt_format.strip_whitespace else ""
    system_turn = "turns|length - 1 if add_generation_prompt else 0" if prompt_format.system_in_last_user else "0"
    tags_always = _boolean(prompt_format.add_system_tags_even_if_message_is_empty)
    system = _if("has_system", _pieces(templates.system, {"instruction": "{{- system -}}"}))
    user = _pieces(
        templates.user,
        {"instruction": "{{- content -}}", "system": _if("loop.index0 == system_turn", system)},
    )
    return "".join(
        [
            "{%- set turns = messages|rejectattr('role', 'equalto', 'system')|list -%}",
            "{%- set systems = messages|selectattr('role', 'equalto', 'system')|list -%}",
            _refuse("systems|length > 1", "at most one system message is allowed"),
            _refuse("not turns", "there is no user message"),
            _refuse("add_generation_prompt and turns[-1]['role'] != 'user'", "a prompt ends with the user's message"),
            _refuse("systems and systems[0]['content'] is not string", _NOT_TEXT),
            "{%- set system = (systems[0]['content'] if systems else "
            + f"{_string(prompt_format.default_system_message)}){trim} -%}}",
            f"{{%- set has_system = system != '' or {tags_always} -%}}",
            f"{{%- set system_turn = {system_turn} -%}}",
            _literal(prompt_format.bos),
            "" if prompt_format.system_in_user else system,
            "{%- for message in turns -%}",
            _refuse("message['content'] is not string", _NOT_TEXT),
            f"{{%- set content = message['content']{trim} -%}}",
            _refuse(
                "message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant')",
                "after the system message, user and assistant take turns and the user begins",
            ),
            _refuse(_empty_content(prompt_format), "a message has empty content"),
            f"{{%- if message['role'] == 'user' -%}}{user}{{%- else -%}}{_answer(templates)}{{%- endif -%}}",
            "{%- endfor -%}",
            _if("add_generation_prompt", _literal(prompt_format.trailing_assistant)),
        ]
    )


def _answer(templates: Templates) -> str:
    trained = _literal(templates.answer_head) + "{{- content -}}" + _literal(templates.terminator)
    marked = f"{{%- generation -%}}{trained}{{%- endgeneration -%}}"
    return _literal(templates.cue) + marked + _literal(templates.answer_tail)


def _pieces(pieces: tuple[Piece, ...], fields: dict[str, str]) -> str:
    return "".join(_literal(piece.text) if piece.field is None else fields[piece.field] for piece in pieces)


def _empty_content(prompt_format: PromptFormat) -> str:
    """True in Jinja for an empty message of a role whose template is not the bare content."""
    roles = [role for role in ("user", "assistant") if getattr(prompt_format, role) != BARE_TEMPLATE]
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
