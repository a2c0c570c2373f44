"""Conversations: templates as transformers renders them, history, and the command."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from console import Done

import tilewright as tw
from tilewright.chat import Conversation, Message, read_template
from tilewright.files import StoredFiles
from tilewright.tokenizer import HuggingFaceTokenizer
from tilewright_hw.arch import InputError

TEMPLATE = """\
{{ bos_token }}{% for m in messages %}
    {%- if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('role ' + m.role) }}{% endif %}
<{{ m['role'][0] }}>{{ m['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}<a>{% endif %}"""
CONFIG = {"bos_token": "<bos>", "eos_token": {"content": "<eos>", "lstrip": False}, "chat_template": TEMPLATE}
HELLO: list[Message] = [{"role": "user", "content": " hi "}]
RENDERED = "<bos><u>hi<eos>\n<a>"


def files(**changes: Any) -> StoredFiles:
    return StoredFiles("a test", {"tokenizer_config.json": json.dumps(CONFIG | changes).encode()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = checkpoints.write_huggingface(tmp_path_factory.mktemp("chat") / "tiny")
    (made / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return made


def test_a_template_in_the_configuration() -> None:
    assert read_template(files()).render(HELLO) == RENDERED


def test_the_default_of_several_templates() -> None:
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    assert read_template(files(chat_template=several)).render(HELLO) == RENDERED


def test_a_template_in_a_file_of_its_own() -> None:
    content = {"chat_template.jinja": b"{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
               b"{{ m | tojson }}{% endfor %}"}  # fmt: skip
    text = read_template(StoredFiles("a test", {**files().content, **content})).render([{"role": "é", "content": "<"}])
    assert text == '{"role": "é", "content": "<"}'


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "there is no chat template"),
        ("{% for %}", "the chat template in tokenizer_config.json in a test is not valid"),
        ("{{ raise_exception('only tools') }}", "refuses this conversation: only tools"),
        ("{{ messages.append(1) }}", "refuses this conversation"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses this conversation"),
        ("{{ 1 / 0 }}", "refuses this conversation: division by zero"),
        ("{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}", "makes more than"),
    ],
)
def test_bad_templates(source: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_template(files(chat_template=source)).render(HELLO)


def test_without_jinja(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r"pip install 'tilewright\[chat\]'"):
        read_template(files())


def conversation(folder: Path, context: int = 48, system: str = "") -> Conversation:
    tokenizer = HuggingFaceTokenizer(folder / "tokenizer.json", 256, frozenset({257}))
    return Conversation(read_template(files()), tokenizer, context, system)


def test_special_tokens_of_a_template_are_tokens(folder: Path) -> None:
    talk = conversation(folder)
    ids, forgotten = talk.ask("hi")
    assert (ids[0], ids.count(256), ids.count(257), forgotten) == (256, 1, 1, 0)
    assert talk.tokenizer.decode(ids) == "<u>hi\n<a>"
    assert talk.stop_tokens == [257]


def test_the_oldest_messages_are_forgotten(folder: Path) -> None:
    talk = conversation(folder, 40, "be kind")
    for i in range(4):
        ids, forgotten = talk.ask(f"ask {i}")
        assert len(ids) < 40
        talk.answered("yes")
    assert forgotten == 2
    assert [m["content"] for m in talk.messages] == ["be kind", "ask 3", "yes"]
    before = list(talk.messages)
    with pytest.raises(InputError, match=r"makes a prompt of 7\d tokens; the context holds 40"):
        talk.ask("x" * 50)
    assert talk.messages == before
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "be kind"}]


def stdin(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))


def test_the_command(command: Callable[..., Done], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are the model's own to the rendered history; /reset forgets it."""
    stdin("a\nb\n/reset\na\n\n/quit\nnever\n", monkeypatch)
    done = command("chat", folder, "--max-new-tokens", "5", "--check")
    assert done.code == 0
    assert done.err.count("bit-exact") == 3
    with tw.load(folder) as model:
        talk = conversation(folder)
        texts = []
        for question in ("a", "b"):
            made = model.generate(talk.ask(question)[0], max_new_tokens=5)
            assert isinstance(made, tw.Generation)
            talk.answered(made.text)
            texts.append(made.text)
    assert done.out == f"{texts[0]}\n{texts[1]}\n{texts[0]}\n"


def test_too_long_a_message(command: Callable[..., Done], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin("x" * 60 + "\n", monkeypatch)
    done = command("chat", folder, "--quiet")
    assert done.code == 2
    assert "the context holds 48" in done.err


def test_a_model_without_a_template(refused: Callable[..., str], hf_folder: Path) -> None:
    assert "there is no chat template" in refused("chat", hf_folder)
    assert "there is no chat template" in refused("chat")
