"""Chat templates: the Jinja source that comes with a checkpoint, run in a sandbox, from messages to a prompt."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from plait.errors import InputError, choices
from plait.text.special import read_object, read_text

LARGEST = 10_000_000  # characters or items that one `*` in a template may make: the sandbox of Jinja limits only range()


def read_chat_template(folder: str | Path, name: str = "default") -> str | None:
    """The template of a checkpoint's folder, None if it has none: chat_template.jinja, chat_template.json, tokenizer_config.json.

    Where a file holds several (a list of names and templates), the one called `name`.
    """
    folder = Path(folder)
    if (path := folder / "chat_template.jinja").is_file():
        return read_text(path, "a Jinja template")
    for path in (folder / "chat_template.json", folder / "tokenizer_config.json"):
        given = read_object(path, "an object").get("chat_template") if path.is_file() else None
        if given is not None:
            return pick_template(given, name, str(path))
    return None


def pick_template(given: object, name: str, where: str) -> str:
    """The template called `name` of what a file holds under chat_template: a string, or a list or object of named ones."""
    if isinstance(given, str):
        return given
    if isinstance(given, list) and all(isinstance(item, dict) for item in given):
        given = {item.get("name"): item.get("template") for item in given}
    if not isinstance(given, dict) or not given or not all(isinstance(text, str) for pair in given.items() for text in pair):
        raise InputError(f"{where}: chat_template must be a string, or a list of objects with a name and a template")
    if name not in given:
        raise InputError(f"{where}: has no chat template called {name!r}; it has {choices(sorted(given))}")
    return given[name]


def render_chat(
    template: str | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    roles: Mapping[str, str] | None = None,
    add_generation_prompt: bool = True,
    tools: Sequence[Any] | None = None,
    documents: Sequence[Any] | None = None,
    **more: Any,
) -> str:
    """The prompt of a conversation as the checkpoint's own template writes it; encode it with `LoadedTokenizer.encode_marked`.

    `roles` gives templates their bos_token, eos_token and so on (`SpecialTokens.roles`); `more` are variables of the
    template's own, such as enable_thinking. InputError says whether the template is missing, broken, or refuses the messages.
    """
    if template is None:
        raise InputError("this checkpoint has no chat template: give one, or write the prompt yourself")
    faults = _faults(messages)
    if faults:
        raise InputError("these are no chat messages", faults)
    compiled = _compiled(template)
    import jinja2

    known = {f"{role}_token": token for role, token in (roles or {}).items()}
    given = {"messages": messages, "tools": tools, "documents": documents, "add_generation_prompt": add_generation_prompt}
    try:
        return compiled.render({**known, **given, **more})
    except jinja2.exceptions.SecurityError as error:
        raise InputError(f"the chat template{_line(error)} does what no template may: {error}") from None
    except _Refused as error:
        raise InputError(f"the chat template refuses these messages: {error}") from None
    except jinja2.exceptions.UndefinedError as error:
        raise InputError(f"the chat template{_line(error)} asks for something that was not given: {error}") from None
    except Exception as error:  # a template is a program of others: anything can go wrong in it
        raise InputError(f"the chat template{_line(error)} fails: {type(error).__name__}: {error}") from None


class _Refused(Exception):
    """What a template's raise_exception raises."""


def _faults(messages: object) -> list[str]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        return [f"a {type(messages).__name__}; expected a list of objects such as {{'role': 'user', 'content': 'Hello'}}"]
    faults = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            faults.append(f"message {number} is a {type(message).__name__}; expected an object with role and content")
        elif not isinstance(message.get("role"), str):
            faults.append(f"message {number} has no role; expected system, user, assistant or what the template knows")
    return faults or ([] if messages else ["there are none; expected at least one"])


def _line(error: BaseException) -> str:
    """` (line 3)` of the template, from the traceback that Jinja rewrites to the template's lines."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    try:
        import jinja2
    except ImportError:
        raise InputError("chat templates need jinja2: pip install jinja2") from None
    try:
        return _environment().from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(f"the chat template (line {error.lineno}) is no valid Jinja: {error.message}") from None
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:  # what Jinja does not see until it compiles
        raise InputError(f"the chat template is no valid Jinja: {type(error).__name__}: {error}") from None


def _environment() -> Any:
    import jinja2
    from jinja2 import ext, nodes, sandbox

    class Generation(ext.Extension):
        """`{% generation %}` marks what the assistant says, for training; the text is the same with and without."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Environment(sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            for one, times in ((left, right), (right, left)):
                if operator == "*" and isinstance(times, int) and hasattr(one, "__len__") and len(one) * times > LARGEST:
                    raise jinja2.exceptions.SecurityError(f"it repeats {len(one)} items {times} times")
            if operator == "**" and (abs(left) > LARGEST or abs(right) > 1000):
                raise jinja2.exceptions.SecurityError(f"it computes {left} ** {right}")
            return super().call_binop(context, operator, left, right)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False) -> str:
    # Jinja's own filter escapes < > & for HTML; models were trained on plain JSON.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: object) -> None:
    raise _Refused(str(message))
