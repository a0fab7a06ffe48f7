import datetime
import json
import sys

import pytest
import transformers
from tokenizers import Tokenizer, models

from plait.errors import InputError
from plait.text.chat import read_chat_template, render_chat

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "blocks": "{% if tools %}\n  {{ tools | tojson(indent=2) }}\n{% endif %}\n"
    "    {% for m in messages %}\n  {{ m.role }}: {{ m.content }}\n    {% endfor %}\n",
    "loops": "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content | trim }}{{ eos_token }}"
    "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}"
    "{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ messages | tojson }}",
    "macro": "{% macro say(m) %}[{{ m.content }}]{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% endfor %}{{ messages[0]['role'].upper() }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}{{ thinking is defined }}",
    "date": "{{ strftime_now('%Y') }}{{ documents }}{{ unk_token is defined }}",
    "slices": "{{ messages[1:] | map(attribute='content') | join('|') }}{{ 'a' * 3 }}{{ 2 ** 3 }}{{ messages[-1].get('name', '-') }}",
}
MESSAGES = [
    {"role": "system", "content": "Be brief & <kind>."},
    {"role": "user", "content": " 你好 😀 </s> {{ 7 * 7 }} 'quoted' "},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]
ROLES = {"bos": "<s>", "eos": "</s>"}
TOOLS = [{"type": "function", "function": {"name": "größe", "description": "<b>", "parameters": {}}}]


@pytest.fixture(scope="module")
def reference():
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="</s>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_equals_transformers(reference, name, prompt, tools):
    expected = reference.apply_chat_template(
        MESSAGES, tools=tools, chat_template=TEMPLATES[name], add_generation_prompt=prompt, tokenize=False
    )
    assert render_chat(TEMPLATES[name], MESSAGES, roles=ROLES, add_generation_prompt=prompt, tools=tools) == expected


def test_variables_and_time():
    text = render_chat("{{ enable_thinking }}{{ strftime_now('%Y') }}", MESSAGES, enable_thinking=False)
    assert text == f"False{datetime.datetime.now():%Y}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}\n{{ m.content }\n{% endfor %}", "(line 2) is no valid Jinja"),
        ("{% endfor %}", "(line 1) is no valid Jinja"),
        ("{% unknown_tag %}", "no valid Jinja"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("a\n\n{{ messages[0].nothing.more }}", "(line 3) asks for something that was not given"),
        ("{{ messages[9].content }}", "asks for something"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ messages | tojson(indent='x'.foo) }}", "the chat template"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "does what no template may"),
        ("{{ messages.append(1) }}", "does what no template may"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "does what no template may"),
        ("{{ 'a' * 99999999999 }}", "does what no template may"),
        ("{{ [1] * 99999999 }}", "does what no template may"),
        ("{{ 99 ** 99999999 }}", "does what no template may"),
        ("{{ 'a' ** 2 }}", "fails: TypeError"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "fails: OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails: RecursionError"),
        ("{% include 'x' %}", "fails"),
        ("(" * 10 + "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "no valid Jinja"),
    ],
)  # fmt: skip
def test_wrong_templates(template, message):
    with pytest.raises(InputError) as caught:
        render_chat(template, MESSAGES)
    assert message in str(caught.value)


def test_the_callers_messages_stay_as_they_are():
    before = json.dumps(MESSAGES)
    with pytest.raises(InputError):
        render_chat("{% set _ = messages[0].update(role='x') %}", MESSAGES)
    assert json.dumps(MESSAGES) == before


@pytest.mark.parametrize(
    ("messages", "faults"),
    [("Hello", ["a str"]), ([], ["there are none"]), ({}, ["a dict"]), (None, ["a NoneType"]),
     ([1, {"content": "x"}, {"role": 2}, {"role": "user"}],
      ["message 1 is a int", "message 2 has no role", "message 3"])],
)  # fmt: skip
def test_wrong_messages(messages, faults):
    with pytest.raises(InputError) as caught:
        render_chat(CHATML, messages)
    assert len(caught.value.faults) == len(faults) and all(part in str(caught.value) for part in faults)


def test_without_jinja(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match="pip install jinja2"):
        render_chat("{{ 'never compiled before' }}", MESSAGES)


def test_where_templates_are_found(tmp_path):
    assert read_chat_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"chat_template": "one"}', "utf-8")
    assert read_chat_template(tmp_path) == "one"
    config.write_text('{"chat_template": [{"name": "default", "template": "two"}, {"name": "tool_use", "template": "three"}]}', "utf-8")
    assert (read_chat_template(tmp_path), read_chat_template(tmp_path, "tool_use")) == ("two", "three")
    with pytest.raises(InputError, match="has default or tool_use"):
        read_chat_template(tmp_path, "rag")
    for wrong in ("3", '[{"name": 1}]', "[1]", '{"a": 2}'):
        config.write_text(f'{{"chat_template": {wrong}}}', "utf-8")
        with pytest.raises(InputError, match="must be a string, or a list"):
            read_chat_template(tmp_path)
    (tmp_path / "chat_template.json").write_text('{"chat_template": "four"}', "utf-8")
    assert read_chat_template(tmp_path) == "four"
    (tmp_path / "chat_template.jinja").write_text("fünf", "utf-8")
    assert read_chat_template(tmp_path) == "fünf"
    (tmp_path / "chat_template.jinja").write_bytes(b"a\n\xff")
    with pytest.raises(InputError, match=r"jinja:2: is not UTF-8"):
        read_chat_template(tmp_path)
