"""Ids as text while they come: whole characters only, and nothing that may still turn out to be a stop string."""

from collections.abc import Callable, Iterable, Iterator, Sequence

Decode = Callable[[Sequence[int]], str]


def texts_of(ids: Iterable[int], decode: Decode, stop: Sequence[str] = ()) -> Iterator[str]:
    """Pieces of the text of ids, as soon as each is sure; joined they are the whole's up to the first of the `stop` strings.

    A character of several ids comes whole, and an end that may be the beginning of a stop string waits for what follows it.
    """
    seen: list[int] = []
    shown = ""
    for id in ids:
        seen.append(id)
        text = decode(seen)
        if len(sure := before(text, stop)) < len(text) and sure.startswith(shown):  # a stop string is there
            break
        if text.endswith("\ufffd") or not text.startswith(shown):  # amid a character
            continue
        if (end := len(text) - pending(text, stop)) > len(shown):
            yield text[len(shown) : end]
            shown = text[:end]
    if len(text := before(decode(seen), stop)) > len(shown):
        yield text[len(shown) :]


def before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first stop string in it."""
    return text[: min((at for word in stop if (at := text.find(word)) >= 0), default=len(text))]


def pending(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of a text that may be the beginning of a stop string."""
    longest = max(map(len, stop), default=1) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(word.startswith(text[-n:]) for word in stop)), 0)
