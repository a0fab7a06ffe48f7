"""From a verb's dataclass and the words of a command line to one instance of it, or one error that lists every fault.

Our own, since argparse stops at the first fault, forgets the first of two `--data`, and takes the empty list for INPUT when an option
stands between MODEL and INPUT; a library that mends this costs more start-up time than the whole of `plait --help`.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

from plait.errors import InputError, choices
from plait.verbs import Positional

OPTION = re.compile(r"--?[A-Za-z][\w-]*(=.*)?", re.DOTALL)  # `-1`, `-` and `- a line of speech` are values
SCALARS: dict[Any, tuple[str, str]] = {  # placeholder, and what is expected
    str: ("TEXT", "text"),
    int: ("N", "a whole number"),
    float: ("X", "a number"),
    Path: ("PATH", "a path"),
}


class Option(NamedTuple):
    name: str  # of the field
    kinds: tuple  # scalar types and Literals, tried in order
    many: bool
    positional: bool
    required: bool
    default: Any
    placeholder: str
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def switch(self) -> bool:
        return self.kinds == (bool,)


def options(verb: type) -> list[Option]:
    """The fields of a verb's dataclass, as options."""
    hints = typing.get_type_hints(verb, include_extras=True)
    return [_option(field, hints[field.name]) for field in dataclasses.fields(verb) if field.init]


def _option(field: dataclasses.Field, hint: Any) -> Option:
    marks = ()
    if get_origin(hint) is typing.Annotated:
        hint, *marks = get_args(hint)
    words = [mark for mark in marks if isinstance(mark, str)]
    if get_origin(hint) is list:
        many, kinds = True, _kinds(get_args(hint)[0])
    else:
        parts = _kinds(hint)
        lists = [part for part in parts if get_origin(part) is list]  # list[str] | None
        many, kinds = (True, _kinds(get_args(lists[0])[0])) if lists else (False, parts)
    if kinds != (bool,) and not (kinds and all(kind in SCALARS or get_origin(kind) is Literal for kind in kinds)):
        raise TypeError(f"{field.name}: {hint} has no form on a command line")
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    is_positional = any(isinstance(mark, Positional) for mark in marks)
    shown = "|".join("|".join(get_args(kind)) if get_origin(kind) is Literal else SCALARS.get(kind, ("", ""))[0] for kind in kinds)
    placeholder = words[0] if len(words) > 1 else field.name.upper() if is_positional else shown
    return Option(field.name, kinds, many, is_positional, default is dataclasses.MISSING, default, placeholder, words[-1] if words else "")


def _kinds(hint: Any) -> tuple:
    parts = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return tuple(part for part in parts if part is not type(None))


def parse(verb: type, words: list[str]) -> Any:
    """An instance of `verb`. Raises InputError with every fault of the line at once."""
    table = options(verb)
    given, loose, faults, strangers = _sort(words, table)
    values: dict[str, Any] = {}
    places = [option for option in table if option.positional]
    for at, option in enumerate(places):
        later = sum(other.required for other in places[at + 1 :])
        count = max(len(loose) - later, 0) if option.many else min(len(loose), 1)
        if count:
            given[option.name], loose = loose[:count], loose[count:]
    if loose and not strangers:
        faults.append(f"{_quoted(loose)}: not expected here" + ("" if places else "; the verb takes options only"))
    for option in table:
        shown = option.placeholder if option.positional else option.flag
        if option.name in given:
            got = given[option.name]
            read = [got] if option.switch else [_convert(word, option, shown, faults.append) for word in got]
            values[option.name] = read if option.many else read[0]
        elif option.required and not (option.positional and strangers):
            faults.append(f"{shown} is missing" + (f": {option.help}" if option.help else "") + _swallowed(option, table, given))
    if faults:
        several = f"{len(faults)} things in the command line cannot be used"
        raise InputError(faults[0] if len(faults) == 1 else several, faults if len(faults) > 1 else ())
    return verb(**values)


def _sort(words: list[str], table: list[Option]) -> tuple[dict[str, Any], list[str], list[str], bool]:
    """Words by the option they belong to, words that belong to none, faults, and whether an unknown option was among them."""
    by_flag = {option.flag: option for option in table if not option.positional}
    switches = {"--no" + flag[1:]: option for flag, option in by_flag.items() if option.switch}
    given: dict[str, Any] = {}
    loose: list[str] = []
    faults: list[str] = []
    strangers, at = False, 0
    while at < len(words):
        word, at = words[at], at + 1
        if word == "--":
            return given, loose + words[at:], faults, strangers
        if not OPTION.fullmatch(word):
            loose.append(word)
            continue
        flag, equals, value = word.partition("=")
        flag = flag.replace("_", "-")
        option = by_flag.get(flag) or switches.get(flag)
        if option is None:
            strangers = True
            faults.append(_stranger(flag, [*by_flag, *(switches if flag.startswith("--no") else ())], table))
            while at < len(words) and not OPTION.fullmatch(words[at]) and words[at] != "--":
                at += 1  # may belong to the unknown option: blame it once
            continue
        if option.switch:
            if equals:
                faults.append(f"{flag} takes no value: write {option.flag} or --no{option.flag[1:]}")
            given[option.name] = flag in by_flag
            continue
        values = [value] if equals else []
        while not equals and at < len(words) and not OPTION.fullmatch(words[at]) and words[at] != "--" and (option.many or not values):
            values.append(words[at])
            at += 1
        if not values:
            faults.append(f"{flag} needs a value: {flag} {option.placeholder}")
        elif option.name in given and not option.many:
            faults.append(f"{flag} is given twice")
        else:
            values = given.get(option.name, []) + values
        given[option.name] = values
    return given, loose, faults, strangers


def _convert(word: str, option: Option, shown: str, fault: Callable[[str], Any]) -> Any:
    wanted = []
    for kind in option.kinds:
        if get_origin(kind) is Literal:
            if word in get_args(kind):
                return word
            wanted.append(choices(get_args(kind)))
            continue
        try:
            value = kind(word)
        except ValueError:
            value = None
        if value is not None and value == value:  # "nan" reads as a float, and never as what somebody wanted
            return value
        wanted.append(SCALARS[kind][1])
    fault(f"{shown} {word}: expected {choices(wanted)}" + near(word, [name for kind in option.kinds for name in get_args(kind)]))


def _swallowed(missing: Option, table: list[Option], given: dict[str, Any]) -> str:
    lists = [option.flag for option in table if option.many and not option.positional and len(given.get(option.name, ())) > 1]
    if not missing.positional or not lists:
        return ""
    return f" (perhaps {choices(lists)} took it: write it before the options)"


def _stranger(flag: str, flags: list[str], table: list[Option]) -> str:
    for option in table:
        if option.positional and flag == option.flag:
            return f"{flag} is given by its place: write {option.placeholder} without {flag}"
    hint = near(flag, flags) or ("; for a text that begins with a dash put -- before it" if any(o.positional for o in table) else "")
    return f"{flag}: no such option{hint}"


def near(word: str, names: list[str]) -> str:
    """`; did you mean ...?`, or nothing when no name is near."""
    import difflib  # costs some milliseconds, and only those who mistype need it

    bare = {name.lstrip("-"): name for name in names}  # dashes would make every option look a little like every other
    found = [bare[name] for name in difflib.get_close_matches(word.lstrip("-"), bare, n=3)]
    return f"; did you mean {choices(found)}?" if found else ""


def _quoted(words: list[str]) -> str:
    return " ".join(f"'{word}'" for word in words)
