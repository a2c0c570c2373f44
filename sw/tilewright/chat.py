"""Conversations: a model's chat template, and the history that it is given."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from tilewright.files import Files, read_object
from tilewright.tokenizer import HuggingFaceTokenizer, Tokenizer
from tilewright_hw.arch import InputError

__all__ = ["ChatTemplate", "Conversation", "Message", "read_template"]

Message = dict[str, str]
"""`role` ("system", "user", "assistant") and `content`."""
TEMPLATE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
MAX_TEXT = 1 << 24
"""Characters of the longest text that a template may make."""


class ChatTemplate:
    """A Jinja template that makes a prompt of messages, in the sandbox and with the names that transformers gives it.

    Parameters
    ----------
    source : str
        The template.
    where : str
        Where it comes from, for errors.
    special : mapping of str to str
        Special tokens by their names (bos_token, eos_token, ...).

    Raises
    ------
    InputError
        The template is not valid, or the package jinja2 is not installed.
    """

    def __init__(self, source: str, where: str, special: Mapping[str, str]) -> None:
        try:
            from jinja2 import TemplateError
            from jinja2.ext import loopcontrols
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ModuleNotFoundError as e:
            raise InputError("chat templates need the package jinja2: pip install 'tilewright[chat]'") from e
        self.where, self.special = where, dict(special)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])

        def refuse(message: str) -> NoReturn:
            raise TemplateError(message)

        environment.globals["raise_exception"] = refuse
        environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except TemplateError as e:
            raise InputError(f"the chat template in {where} is not valid: {e}") from e

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt that the model continues with its answer; InputError if the template refuses it."""
        try:
            pieces, size = [], 0
            for piece in self._template.generate(
                messages=[dict(m) for m in messages], add_generation_prompt=True, tools=None, documents=None,
                **self.special,
            ):  # fmt: skip
                pieces.append(piece)
                size += len(piece)
                if size > MAX_TEXT:
                    raise InputError(f"the chat template in {self.where} makes more than {MAX_TEXT} characters")
        except InputError:
            raise
        except Exception as e:  # whatever a template does: its expressions raise anything
            raise InputError(f"the chat template in {self.where} refuses this conversation: {e}") from e
        return "".join(pieces)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def read_template(files: Files) -> ChatTemplate:
    """Return a model's chat template.

    It is in chat_template.jinja, or in tokenizer_config.json: a text, or several with names, of which "default" is
    taken. InputError if there is none.
    """
    config = read_object(files, CONFIG) or {}
    special = {name: text for name in SPECIAL if (text := _token(config.get(name))) is not None}
    raw = files.read(TEMPLATE)
    if raw is not None:
        try:
            return ChatTemplate(raw.decode("utf-8"), files.where(TEMPLATE), special)
        except UnicodeDecodeError as e:
            raise InputError(f"{files.where(TEMPLATE)} must be UTF-8: {e.reason} at byte {e.start}") from e
    source = config.get("chat_template")
    if isinstance(source, list):
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
        source = named.get("default")
    if not isinstance(source, str):
        raise InputError(
            f"there is no chat template: neither {files.where(TEMPLATE)} nor a chat_template in {CONFIG}; "
            "tilewright generate continues any text"
        )
    return ChatTemplate(source, files.where(CONFIG), special)


def _token(value: Any) -> str | None:
    """Return a special token's text: a string, or an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


@dataclass
class Conversation:
    """The messages so far, and the tokens that ask for the next answer.

    Parameters
    ----------
    template : ChatTemplate
        Makes the prompt.
    tokenizer : Tokenizer
        A `HuggingFaceTokenizer`: templates write special tokens as text.
    context : int
        Tokens that the model can hold.
    system : str
        The first message, unless it is empty.
    """

    template: ChatTemplate
    tokenizer: Tokenizer
    context: int
    system: str = ""
    messages: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.messages = self._opening()

    def reset(self) -> None:
        """Begin anew."""
        self.messages = self._opening()

    def ask(self, text: str) -> tuple[list[int], int]:
        """Add what the user says; return the prompt's tokens, and how many of the oldest messages were forgotten.

        Messages are forgotten in pairs, question and answer, until the prompt leaves room for at least one token.
        InputError if the question alone does not fit, or is refused by the template: the conversation is then as
        before.
        """
        opening = self._opening()
        history = [*self.messages[len(opening) :], {"role": "user", "content": text}]
        for forgotten in range(0, len(history), 2):
            messages = [*opening, *history[forgotten:]]
            ids = self._ids(messages)
            if len(ids) < self.context:
                self.messages = messages
                return ids, forgotten
        raise InputError(f"the message makes a prompt of {len(ids)} tokens; the context holds {self.context}")

    def answered(self, text: str) -> None:
        """Add the model's answer."""
        self.messages.append({"role": "assistant", "content": text})

    @property
    def stop_tokens(self) -> list[int]:
        """The token that ends a message, if the tokenizer has it."""
        assert isinstance(self.tokenizer, HuggingFaceTokenizer)
        token = self.tokenizer.token_id(self.template.special.get("eos_token", ""))
        return [] if token is None else [token]

    def _opening(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        if not isinstance(self.tokenizer, HuggingFaceTokenizer):
            raise InputError("a chat needs a model with a tokenizer.json")
        return self.tokenizer.encode_template(self.template.render(messages))
