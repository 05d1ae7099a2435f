"""Chat templates against transformers' own rendering, and everything they must refuse."""

from __future__ import annotations

import datetime
import json
import pathlib
from typing import Any

import pytest

from actors.tokenizer.template import ChatTemplate
from protocols.errors import StartError, UserError
from protocols.request import ChatPrompt
from tests.actors.tokenizer import builders, templates

SPECIAL = {"bos_token": builders.BOS, "eos_token": builders.EOS}
STYLES = {
    "chatml": templates.CHATML,
    "headers": templates.HEADERS,
    "inst": templates.INST,
    "parts": templates.PARTS,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of <a> & 'b'",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {
    "id": "call12345",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich"}},
}
USER = {"role": "user", "content": "Hello <you> & 'me' 日本\n"}
SYSTEM = {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "Hi there. "}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, {"role": "user", "content": "Again?"}],
    "nulls": [USER, {"role": "assistant", "content": "x", "tool_calls": None}, USER],
    "reasoning": [USER, {"role": "assistant", "content": "x", "reasoning": "\nwhy\n"}, USER],
    "call": [
        USER,
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"degrees": 21}', "tool_call_id": "call12345", "name": "get_weather"},
    ],
}


RENDERED = [(s, c) for s in STYLES for c in CONVERSATIONS if (s, c) != ("parts", "call")]
CONTINUED: list[tuple[str, Any]] = [(s, text) for s in STYLES for text in ("So far", "So far, ", " a\n")]
CONTINUED.append(("parts", [{"type": "text", "text": "So "}]))


def chat(messages: Any, tools: Any = None, *, continue_final: bool = False, **values: Any) -> ChatPrompt:
    return ChatPrompt(
        json.dumps(messages).encode(), json.dumps(tools).encode(), json.dumps(values).encode(), continue_final
    )


def template(source: str, **more: str) -> ChatTemplate:
    return ChatTemplate(
        {"default": source, **more}, SPECIAL, now=lambda: datetime.datetime(2026, 11, 21, 12, 0)
    )


def refusal(source: str, messages: Any = (USER,), **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        template(source).render(chat(list(messages), **values))
    assert caught.value.body.status == 400
    return caught.value.body.message


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' tokenizer, to render with any template."""
    import transformers

    directory = builders.write_model(tmp_path_factory.mktemp("peer"), builders.byte_level())
    return transformers.PreTrainedTokenizerFast.from_pretrained(str(directory))


@pytest.mark.parametrize("tools", [None, [TOOL, TOOL]], ids=["no_tools", "tools"])
@pytest.mark.parametrize(("style", "conversation"), RENDERED)
def test_the_text_is_that_of_transformers(style: str, conversation: str, tools: Any, peer: Any) -> None:
    messages = CONVERSATIONS[conversation]
    values = {"date_string": "1 Jan 2026", "enable_thinking": True}
    expected = peer.apply_chat_template(
        messages,
        tools=tools,
        chat_template=STYLES[style],
        tokenize=False,
        add_generation_prompt=True,
        **values,
    )
    assert template(STYLES[style]).render(chat(messages, tools, **values)) == expected


@pytest.mark.parametrize(("style", "content"), CONTINUED)
def test_a_final_message_is_continued_as_in_transformers(style: str, content: Any, peer: Any) -> None:
    messages = [USER, {"role": "assistant", "content": content}]
    values = {"date_string": "1 Jan 2026"}
    expected = peer.apply_chat_template(
        messages, chat_template=STYLES[style], tokenize=False, continue_final_message=True, **values
    )
    assert template(STYLES[style]).render(chat(messages, continue_final=True, **values)) == expected


def test_the_date_is_the_clock_s() -> None:
    assert "Today Date: 21 Nov 2026\n" in template(templates.HEADERS).render(chat([USER]))


def test_lists_of_text_fit_every_template() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    listed, joined = chat([{"role": "user", "content": parts}]), chat([{"role": "user", "content": "a\nb"}])
    for style in ("chatml", "headers", "inst"):
        assert template(STYLES[style]).render(listed) == template(STYLES[style]).render(joined)
    assert template(templates.PARTS).render(listed) == "<user>|a|b\n<assistant>"
    assert template(templates.ONLY_PARTS).render(joined) == "<user>|a\nb"


def test_lists_fit_in_every_role() -> None:
    part = [{"type": "text", "text": "a"}]
    messages = [{"role": role, "content": part} for role in ("system", "user", "assistant", "tool")]
    assert template(templates.CHATML).render(chat(messages)) == (
        "<|im_start|>system\na<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\na\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_arguments_of_tool_calls_may_be_text() -> None:
    function = {"name": "get_weather", "arguments": json.dumps({"city": "Zürich"})}
    as_text = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL | {"function": function}]}]
    as_object = [USER, {"role": "assistant", "tool_calls": [CALL]}]
    rendered = template(templates.CHATML).render(chat(as_text))
    assert rendered == template(templates.CHATML).render(chat(as_object))
    assert '"arguments": {"city": "Zürich"}}' in rendered


def test_requests_with_tools_take_the_template_for_tools() -> None:
    both = template("plain", tool_use="with tools")
    assert both.render(chat([USER])) == "plain"
    assert both.render(chat([USER], [TOOL])) == "with tools"


def test_values_pass_through_but_replace_no_messages() -> None:
    source = "{{ mode }}{{ bos_token }}{{ messages[0].content }}{{ add_generation_prompt }}"
    values = b'{"mode": "m", "bos_token": "B", "messages": [], "add_generation_prompt": false}'
    prompt = ChatPrompt(b'[{"role": "user", "content": "c"}]', template_kwargs=values)
    assert template(source).render(prompt) == "mBcFalse"


def test_no_template() -> None:
    with pytest.raises(UserError, match="this model has no chat template; use /v1/completions"):
        ChatTemplate({}, SPECIAL).render(chat([USER]))


def test_a_broken_template_cannot_start() -> None:
    with pytest.raises(StartError, match=r"chat template 'default' is not valid, line 2"):
        template("a\n{% if %}")


def test_a_template_s_own_refusal_is_told() -> None:
    messages = [USER, USER]
    assert refusal(templates.INST, messages).endswith("roles must alternate user/assistant")


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ([], "messages must not be empty."),
        (["x"], "messages must be a list of objects."),
        ({"role": "user"}, "messages must be a list of objects."),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "type 'image_url'"),
        ([{"role": "user", "content": [7]}], "a content part must be an object with a type."),
    ],
)
def test_bad_messages(messages: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        template(templates.CHATML).render(chat(messages))


def test_bad_json() -> None:
    for field in ("messages", "tools", "template_kwargs"):
        texts = {"messages": b"[{}]", "tools": b"null", "template_kwargs": b"{}"} | {field: b"[" * 100_000}
        with pytest.raises(UserError, match="not valid JSON"):
            template("x").render(ChatPrompt(**texts))
    with pytest.raises(UserError, match="must be an object"):
        template("x").render(ChatPrompt(b'[{"role": "user"}]', template_kwargs=b"[]"))


def test_nothing_to_continue() -> None:
    for messages in ([USER, {"role": "assistant"}], [USER, {"role": "assistant", "content": []}]):
        with pytest.raises(UserError, match="no text to continue"):
            template(templates.PARTS).render(chat(messages, continue_final=True))
    for source in ("{{ messages[0].content }}", "no messages"):
        with pytest.raises(UserError, match="continue"):
            template(source).render(chat([USER, ANSWER], continue_final=True))


ESCAPES = [
    "{{ ''.__class__.__mro__ }}{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ lipsum.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ messages.append(1) }}",
    "{{ raise_exception.__globals__['json'] }}",
    "{{ namespace(__class__=1) }}",
    "{{ ('{0.__class__}').format(messages).x.y }}",
    "{% include '/etc/passwd' %}",
    "{{ undefined_name.attribute }}",
    "{{ 1 / 0 }}",
    "{{ 'a' + 1 }}",
    "{{ messages[7].content }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_the_sandbox_holds(source: str) -> None:
    message = refusal(source)
    assert "/" not in message
    assert " at 0x" not in message


GREAT = [
    "{{ 'a' * 10**10 }}",
    "{{ 10**10 * 'a' }}",
    "{{ [0] * 10**10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x='aa') %}{% for i in range(60) %}"
    "{% set n.x = n.x | replace('a', n.x) %}{% endfor %}",
    "{% set n = namespace(x='aa') %}{% for i in range(60) %}"
    "{% set n.x = n.x.replace('a', n.x) %}{% endfor %}",
    "{{ 'a' | center(10**9) }}",
    "{{ 'a\\nb' | indent(10**9) }}",
    "{{ [1] | tojson(indent=10**9) }}",
    "{{ 'a'.ljust(10**9) }}",
    "{{ ['a' * 1000] | batch(10**9, 'x') | list }}",
    "{{ (['a' * 1000000] * 1000) | join }}",
    "{{ 'x'.join(['a' * 1000000] * 1000) }}",
    "{{ (['a' * 1000000] * 1000) | map('string') | join('x') }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10**9, 1) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ '{:>{}}'.format(1, 10**9) }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}",
]


@pytest.mark.parametrize("source", GREAT)
def test_nothing_grows_without_bound(source: str) -> None:
    refusal(source)


def test_great_numbers_are_not_great_texts() -> None:
    source = (
        "{{ 1763683200 | string }} {{ '%d' % 1763683200 }} {{ [1763683200] | tojson }}"
        "{{ '{}'.format(1763683200) }} {{ 1763683200 + 1 }} {{ x | default(1763683200) }}"
    )
    numbers = template(source).render(chat([USER]))
    assert numbers.count("1763683200") == 5 and "1763683201" in numbers


def test_the_actor_s_template_needs_neither_torch_nor_transformers(tmp_path: pathlib.Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys, actors.tokenizer.template, actors.tokenizer.detokenizer\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
