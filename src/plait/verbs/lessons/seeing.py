"""What a run on pictures begins from: nothing but its data, or the weights of another model; and what its lesson is made of."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from plait import models
from plait.core.model import Model
from plait.data.picture_feed import Pictures
from plait.data.picture_rows import BoxRow, Part, PictureRow, parts_in
from plait.data.report import Report
from plait.errors import InputError, choices
from plait.hub import load
from plait.hub.pictures import FILE, preparation_in
from plait.hub.transfer import Transfer, transfer
from plait.media.augment import PRESETS, Augmentation
from plait.media.preparing import Exactly, Preparation, Shortest, Within
from plait.tasks.objective import Objective
from plait.train.checkpoints import write_json
from plait.verbs.eval import Eval
from plait.verbs.lessons.beginning import described
from plait.verbs.lessons.lesson import Choice, Lesson, Say, choose, has_towers, presets_of, usual_recipe
from plait.verbs.lessons.named import files_of
from plait.verbs.lessons.rows import Rows, read_rows_of, rows_to_score
from plait.verbs.train import Train

CHECKED = 16  # pictures of a batch of evaluation
R = TypeVar("R", PictureRow, BoxRow)
Reader = Callable[[Sequence[str], Part | None], tuple[list[R], Report]]  # of one part of what is divided, None: of all
PATCHES = ((64, 4), (128, 8))  # up to this side, patches of so many pixels; larger pictures have patches of 16


@dataclass(frozen=True)
class Seeing:
    """What a task wants of its model: towers, what the first of them is given, the page to take where the user names none, settings of
    its config; from scratch the preparation of pictures and the side they have then, and the frames of clips; and how many pictures there
    are."""

    towers: tuple[str, ...]
    takes: str
    usual: str
    settings: Mapping[str, Any]
    preparation: Preparation
    side: int
    pictures: int
    least: int = 1  # pictures of a batch, where the user does not say
    most: int | None = None  # with few rows there are more steps
    frames: int | None = None

    @property
    def patch(self) -> int:
        """Pixels of a patch's side from scratch: of a clip, which has many of them, they are larger."""
        return patch_of(self.side) * (2 if self.frames else 1)


@dataclass
class Sight:
    """The model's description, what is done to pictures, what fills in its first weights (None: they are drawn)."""

    choice: Choice
    preparation: Preparation
    released: bool = False
    start: Callable[[Model], Transfer] | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def side(self) -> int | None:
        """Pixels of the square that a picture becomes, or of the shorter side where its shape stays; None where neither is set."""
        size = self.preparation.size
        if self.preparation.crop is not None:
            return self.preparation.crop[0]
        return size.edge if isinstance(size, Shortest) else size.height if isinstance(size, Exactly) else None

    def augmentation(self, verb: Train, usual: str) -> Augmentation:
        """What --augment names."""
        name = verb.augment or usual
        if name not in PRESETS:
            raise InputError(f"--augment {name}: there is {choices(PRESETS)}")
        return Augmentation.named(name, self.side)


# ---- rows ----


def sides_of(verb: Train, read: Reader[R], stratum: Callable[[R], str], say: Say) -> Rows[R]:
    """Both sides: data that are divided in folders train/ and valid/ are taken so, from the others a tenth is held out."""
    paths = files_of(verb.data, say)
    parts = {path: parts_in(path) for path in paths}
    divided = [path for path in paths if "valid" in parts[path]]
    if divided and not verb.valid:
        (train, learned), (valid, checked) = read(paths, "train"), read(divided, "valid")
        say(f"train: {learned}")
        say(f"valid: {checked}")
        return Rows(train, valid)
    part: Part | None = "train" if any(parts.values()) else None
    return read_rows_of(paths, verb.valid, verb.seed, lambda paths: read(paths, part), key, stratum, say)


def key(row: PictureRow | BoxRow) -> str:
    return row.key


def sides_to_score(verb: Eval, train: Train | None, read: Reader[R], stratum: Callable[[R], str], say: Say) -> tuple[list[R], list[R]]:
    """As `rows_to_score`; of data that are divided the test part, else the one for validation."""

    def asked(paths: Sequence[str]) -> tuple[list[R], Report]:
        parts = {part for path in paths for part in parts_in(path)}
        return read(paths, next((part for part in ("test", "valid") if part in parts), None))

    return rows_to_score(verb, train, asked, key, stratum, say, lambda train: sides_of(train, read, stratum, lambda _: None))


def in_order(shown: Pictures[Any]) -> Iterator[Any]:
    """Batches of all rows as they stand."""
    for some in np.array_split(np.arange(len(shown)), -(-len(shown) // CHECKED)):
        yield shown.batch(some)


# ---- models ----


def patch_of(side: int) -> int:
    return next((patch for most, patch in PATCHES if side <= most), 16)


def whole_patches(settings: Mapping[str, Any], side: int) -> None:
    if "image_size" in settings and side % (patch := settings.get("patch", 1)):
        near = " or ".join(str(n) for n in (side // patch * patch, (side // patch + 1) * patch) if n)
        raise InputError(f"--size {side}: the model cuts pictures into squares of {patch} pixels, which must fill them: choose {near}")


def begin(verb: Train, saved: Mapping[str, Any] | None, want: Seeing, say: Say) -> Sight:
    """Of a resumed run, from `--model`, or from scratch."""
    if saved is not None:
        kept = preparation_in(verb.out, want.preparation.processor)
        if kept is None:
            raise InputError(f"{verb.out}: lacks {FILE}, which says what is done to pictures: it was removed")
        return Sight(Choice.of(saved), kept, verb.model is not None)
    if verb.tokenizer or verb.vocab_size:
        raise InputError("pictures have no tokens: leave out --tokenizer and --vocab-size")
    return of_model(verb, want, say) if verb.model is not None else from_scratch(verb, want, say)


def from_scratch(verb: Train, want: Seeing, say: Say) -> Sight:
    presets = presets_of(has_towers(want.towers, want.takes))

    def told(arch: str) -> dict[str, Any]:
        known = {f.name for f in fields(models.PAGES[arch].Config)}
        wanted = {"image_size": want.side, "patch": want.patch, "frames": want.frames, **want.settings}
        return {name: value for name, value in wanted.items() if name in known}

    whole_patches(told(presets.get(verb.preset or "", (want.usual,))[0]), want.side)
    entries = max(1, (want.side // want.patch) ** 2) * (want.frames or 1)
    choice = choose(verb, presets, want.usual, told, want.pictures * entries, say)
    say(f"pictures become {want.side} x {want.side} pixels")
    rows = max(1, choice.batch_tokens // entries)
    rows = rows if verb.batch_tokens else max(want.least, min(rows, want.most or rows))
    return Sight(replace(choice, batch_tokens=rows), want.preparation)


def of_model(verb: Train, want: Seeing, say: Say) -> Sight:
    """From a released checkpoint or a run: its page and preparation, its settings but for the head and a --size, its weights where names
    and shapes agree; a table of positions is interpolated for another size."""
    assert verb.model is not None
    if verb.preset:
        raise InputError("--model brings its own size: leave out --preset")
    ready = load(verb.model)
    net = ready.net
    if net.towers != want.towers or net.takes(net.towers[0]) != want.takes:
        has = f"{' and '.join(net.towers)} of {net.takes(net.towers[0])}"
        raise InputError(
            f"--model {verb.model}: has {has}, and {verb.task} of these data trains {' and '.join(want.towers)} of {want.takes}"
        )
    arch, config = described(ready)
    known = {f.name for f in fields(models.PAGES[arch].Config)}
    if missing := sorted(set(want.settings) - known):
        raise InputError(f"--model {verb.model}: the page {arch} has no {', '.join(missing)}, which {verb.task} needs")
    wanted = {**config, **want.settings}
    preparation = ready.parts.preparation or want.preparation
    if verb.size:
        preparation = at_side(preparation, verb.size)
        wanted |= {"image_size": verb.size} if "image_size" in known else {}
        whole_patches(wanted, verb.size)
    if verb.dropout is not None and "dropout" in known:
        wanted["dropout"] = verb.dropout

    def start(made: Model) -> Transfer:
        found = transfer(net, made)
        say(f"started from {verb.model}: {found}")
        return found

    rows = max(1, (verb.batch_tokens or 32 * 196) // 196)
    say(f"{verb.model}: page {arch}, {want.pictures:,} pictures, {rows} a batch")
    return Sight(Choice(arch, wanted, rows, verb.smoothing or 0.0), preparation, True, start)


def at_side(given: Preparation, side: int) -> Preparation:
    """The same for pictures of another size: of their shorter side where they keep their shape, else of the square."""
    size = given.size
    if given.crop is not None and isinstance(size, Shortest):
        return replace(given, size=Shortest(round(size.edge * side / given.crop[0])), crop=(side, side))
    if given.crop is None and isinstance(size, Shortest):
        return replace(given, size=Shortest(side, size.longest and round(size.longest * side / size.edge)))
    return given if isinstance(size, Within) else replace(given, size=Exactly(side, side), crop=None)


def picture_lesson(start: Sight, objective: Objective, sides: Sequence[Pictures[Any]], seed: int, answers: dict[str, Any]) -> Lesson:
    """`sides` are those to learn from and to validate on; `answers` is what the run's config.json says for answering."""
    choice = start.choice
    feed, checks = sides[0].feed(choice.batch_tokens, seed), sides[1].feed(CHECKED)

    def keep(folder: Path) -> None:
        write_json(folder / FILE, start.preparation.written())

    digest = hashlib.sha256(f"{feed.fingerprint} {checks.fingerprint}".encode()).hexdigest()[:16]
    return Lesson(
        choice.arch,
        choice.config,
        objective,
        feed,
        checks.rereading(),
        digest,
        keep,
        usual_recipe(choice.arch, choice.config, start.released),
        {"batch_tokens": choice.batch_tokens, "smoothing": choice.smoothing, "max_length": None, "answers": answers},
        start.start,
        workers=1,
    )
