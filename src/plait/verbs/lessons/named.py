"""Data by name: built-in sets as files in the cache, so that each task reads them as it reads any other file."""

from collections.abc import Sequence

from plait.data.builtin import Part, is_set, written
from plait.places import cache_dir
from plait.train.checkpoints import write_atomically
from plait.verbs.lessons.lesson import Say


def files_of(names: Sequence[str], say: Say, part: Part = "train") -> list[str]:
    """Names of data, of which built-in sets become files, made anew of their packages."""
    found = []
    for name in names:
        if is_set(name):
            data, suffix, _ = written(name, part)
            path = cache_dir() / "sets" / f"{name.replace(':', '-')}.{part}{suffix}"
            write_atomically(path, data)
            say(f"built-in set {name}, its {part} part: {path}")
            name = str(path)
        found.append(name)
    return found


def test_part_of(data: Sequence[str], say: Say) -> list[str]:
    """Files with the test part of what a run was trained on, where all of that is built in; else none."""
    return files_of(data, say, "test") if data and all(map(is_set, data)) else []
