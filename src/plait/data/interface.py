"""Tasks made of Home Assistant's interface texts: languages to tell apart, marks and capitals to restore, blanks to fill, texts to read.

Each gives (key, record): a test part is made of keys, so that all records of a key are on one side of it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from plait.data.packages import Files

LANGUAGES = ("ca", "de", "es", "it", "nb", "nl", "pt-BR", "sv")  # all in Latin letters, some of them near relatives
REFERENCE = "[%key:"  # begins a name of a text elsewhere
MARKS = {",": "COMMA", ".": "PERIOD", "?": "QUESTION", ":": "COLON", "!": "PERIOD"}
WORD = re.compile(r"(\w[\w'’/-]*)([,.?:!]?)")
SENTENCE_END = re.compile(r"(?<=[.?!])\s+")
BLANK = "____"
TOGETHER = 8  # sentences of one component: one becomes a question, the others its context
LEAST_WORDS = 5  # of a sentence that is worth asking for
LEAST_LETTERS = 4  # of a word that is asked for

Record = tuple[str, Any]


def leaves(tree: object, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, text) of each text in a JSON tree."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, str):
        yield path, tree


def components(files: Files, language: str = "en") -> Iterator[tuple[str, list[str]]]:
    """(component, its distinct texts in their order), white space as single spaces."""
    end = f"/translations/{language}.json"
    for name in sorted(name for name in files.names if name.endswith(end)):
        texts = (" ".join(text.split()) for _, text in leaves(json.loads(files.read(name))) if REFERENCE not in text)
        if found := list(dict.fromkeys(text for text in texts if text)):
            yield name.removesuffix(end).rpartition("/")[2], found


def documents(files: Files) -> Iterator[Record]:
    """The texts of a component in one language as a document, a text a line; a component is on one side in all its languages."""
    for language in ("en", *LANGUAGES):
        for name, texts in components(files, language):
            yield name, {"text": "\n".join(texts) + "\n"}


def languages(files: Files) -> Iterator[Record]:
    """Texts with the language each is in; those of several languages are left out."""
    seen: dict[str, set[str]] = {}
    for language in LANGUAGES:
        for _, texts in components(files, language):
            for text in texts:
                seen.setdefault(text, set()).add(language)
    english = {text for _, texts in components(files) for text in texts}  # what stands there untranslated
    for text, found in seen.items():
        if len(found) == 1 and text not in english:
            yield text, {"text": text, "label": next(iter(found))}


def punctuation(files: Files) -> Iterator[Record]:
    """Words of English sentences in lower case and bare, with the mark behind each and whether it had a capital."""
    texts = dict.fromkeys(text for _, some in components(files) for text in some)
    for text in texts:
        found = [WORD.fullmatch(token) for token in text.split()]
        if len(found) < LEAST_WORDS or None in found:
            continue  # what has brackets, placeholders or markup means little without them
        words, tags = list[str](), list[str]()
        for word, mark in (one.groups() for one in found if one):
            parts = [MARKS[mark]] if mark else []
            words.append(word.lower())
            tags.append("+".join(parts + ["CAP"] * word[0].isupper()) or "O")
        yield " ".join(words), {"tokens": words, "tags": tags}


def blanks(files: Files) -> Iterator[Record]:
    """Sentences of which one word is blank that stands once in other sentences of the same component: those are its context.

    A key is a component, so that all questions on one are on one side.
    """
    seen: set[str] = set()
    for name, texts in components(files):
        sentences = [one for text in texts for one in SENTENCE_END.split(text) if len(one.split()) >= LEAST_WORDS and one not in seen]
        sentences = list(dict.fromkeys(sentences))
        seen.update(sentences)
        for start in range(0, len(sentences), TOGETHER):
            group = sentences[start : start + TOGETHER]
            for n, sentence in enumerate(group):
                context = "\n".join(other for other in group if other is not sentence)
                counts = Counter(re.findall(r"\w+", context))
                words = [word for word in re.finditer(r"\w+", sentence) if counts[word[0]] == 1 and word[0].isalpha()]
                word = max(words, key=lambda one: len(one[0]), default=None)
                if word is None or len(word[0]) < LEAST_LETTERS:
                    continue
                found = re.search(rf"\b{word[0]}\b", context)
                assert found is not None
                question = sentence[: word.start()] + BLANK + sentence[word.end() :]
                yield name, {"id": f"{name}-{start + n}", "question": question, "context": context, "answer": word[0], "at": found.start()}
