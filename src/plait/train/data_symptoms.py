"""What can be wrong with batches before any model has seen them. Each check takes a patient and gives findings."""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from plait.data.examples import IGNORED
from plait.train.patient import Finding, Patient, Piece, shifted

GRAM = 32  # tokens in a row that two texts seldom share by chance
SHORT = 8  # pieces of fewer tokens may well be equal by chance
TEMPLATE = 5  # tokens that begin all texts before they are taken for a prompt


def share(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part / max(whole, 1):.1%})"


def asked_answers(p: Patient) -> Iterator[Finding]:
    """Answers there are, and none is asked of padding."""
    looked, name = p.train, "answers"
    if not looked.pieces:
        return
    asked = sum(int(piece.asked.sum()) if piece.per_entry else 1 for piece in looked.pieces)
    if not asked:
        advice = f"all are {IGNORED}, which means not asked: look at how the labels are made, and whether texts are cut before them"
        yield Finding("fault", name, f"no answer is asked in {looked.batches:,} batches", advice)
        return
    if looked.unasked:
        yield Finding("warning", name, f"nothing is asked in {share(looked.unasked, looked.batches)} batches", "those steps learn nothing")
    if looked.padding:
        advice = f"answers where there is no token must be {IGNORED}"
        yield Finding("fault", "padding in the loss", f"{looked.padding:,} answers are asked of padding", advice)
    if not looked.unasked and not looked.padding:
        fed = sum(len(piece.fed) if piece.per_entry else 1 for piece in looked.pieces)
        yield Finding("ok", name, f"asked in {share(asked, fed)} {'entries' if looked.pieces[0].per_entry else 'rows'}")


def shift_of_answers(p: Patient) -> Iterator[Finding]:
    """Where answers are tokens of the text itself, each is the next one."""
    if p.shift is None:
        return
    pieces, name = [piece for piece in p.train.pieces if piece.per_entry], "next token"
    equal = f"{shifted(pieces, p.shift):.0%} of the answers are the token"
    if p.shift == 1:
        yield Finding("ok", name, f"{equal} that follows")
    elif p.shift == 0:
        advice = "a model that copies loses nothing and learns nothing: shift the answers by one"
        yield Finding("fault", name, f"{equal} itself that the model reads there", advice)
    else:
        where = f"{p.shift} places further on" if p.shift > 0 else "before"
        yield Finding("fault", name, f"{equal} {where}", "labels are shifted twice, or to the wrong side: shift them by one, once")


def the_end(p: Patient) -> Iterator[Finding]:
    """The token that ends a text is learned: where padding is the end token too, it is easily masked away with the padding."""
    if p.shift != 1:
        return
    pieces, name = [piece for piece in p.train.pieces if piece.per_entry and len(piece.fed) > 1 and piece.asked[:-1].any()], "end of text"
    tails = [piece for piece in pieces if piece.asked[-2]]
    unlearned = sum(not piece.asked[-1] for piece in tails)
    advice = "the model will never learn to stop: mask padding by its place, not by its id"
    if unlearned > 0.9 * len(tails) and len(tails) > 1:
        yield Finding("fault", name, f"the answer at the last token is left out in {share(unlearned, len(tails))} texts", advice)
        return
    if (hole := hole_in(pieces)) is not None:
        yield Finding("fault", name, f"token {p.text([hole])} is left out wherever it follows, though its neighbours are learned", advice)
        return
    ends = Counter(int(piece.answers[-1]) for piece in pieces if piece.asked[-1])
    if not ends:
        return
    (last, often), total = ends.most_common(1)[0], sum(ends.values())
    longest = max(len(piece.fed) for piece in pieces)
    short = [piece for piece in pieces if len(piece.fed) < longest]
    paired = pieces[0].source is not None
    if often < (0.9 if paired else 0.3) * total and total > 9 and (paired or len(short) > 0.9 * len(pieces)):
        seen = f"no token ends all texts: the most usual last one, {p.text([last])}, ends {share(often, total)}"
        yield Finding("fault" if paired else "warning", name, seen, "the model cannot learn to stop: put an end token behind each text")
    elif often > 0.3 * total:
        yield Finding("ok", name, f"{p.text([last])} ends {share(often, total)} texts, and is learned")


def hole_in(pieces: list[Piece]) -> int | None:
    """The id that, again and again, is alone left out among answers that are asked for, and is asked for nowhere."""
    holes, asked = Counter[int](), set[int]()
    for piece in pieces:
        wanted = piece.asked
        asked.update(np.unique(piece.answers[wanted]).tolist())
        alone = np.flatnonzero(~wanted[1:-1] & wanted[:-2] & wanted[2:]) + 1
        holes.update(piece.fed[alone + 1].tolist())
    return next((id for id, times in holes.most_common(3) if times > 2 and id not in asked), None)


def prompts(p: Patient) -> Iterator[Finding]:
    """What every text begins with is a prompt, and need not be learned."""
    pieces = [piece for piece in p.train.pieces if piece.per_entry and len(piece.fed) > TEMPLATE]
    if p.shift != 1 or len(pieces) < 20 or pieces[0].source is not None:
        return
    beginning = Counter(piece.fed[: TEMPLATE + 1].tobytes() for piece in pieces)
    same, often = beginning.most_common(1)[0]
    if often < 0.9 * len(pieces):
        return
    first = [piece for piece in pieces if piece.fed[: TEMPLATE + 1].tobytes() == same]
    if all(piece.asked[:TEMPLATE].all() for piece in first):
        seen = (
            f"{share(often, len(pieces))} texts begin with the same tokens, {p.text(first[0].fed[: TEMPLATE + 1].tolist())}, and learn them"
        )
        yield Finding("warning", "prompt in the loss", seen, "if that is a prompt, give it as one, so that only the answer is learned")
    else:
        yield Finding("ok", "prompt in the loss", "the beginning that texts have in common is not learned")


def classes(p: Patient) -> Iterator[Finding]:
    """Classes are numbered from 0 to one less than the head has outputs, and occur on both sides."""
    if not p.classifies or p.outputs is None:
        return
    train, valid = (
        Counter(int(a) for piece in side.pieces for a in np.atleast_1d(piece.answers) if a != IGNORED) for side in (p.train, p.held_out)
    )
    yield from numbered(train, valid, p.outputs)


def numbered(train: Counter[int], valid: Counter[int], n: int) -> Iterator[Finding]:
    """How often each class is the answer on both sides; there are `n`."""
    name = "classes"
    if outside := sorted(c for c in {*train, *valid} if not 0 <= c < n):
        advice = f"number them from 0 to {n - 1}" + ("; they seem to be counted from 1" if outside == [n] and not train[0] else "")
        yield Finding("fault", name, f"labels {', '.join(map(str, outside[:5]))} have no output: the head has {n}", advice)
        return
    unused = [c for c in range(n) if not train[c]]
    if unused == [0] and n > 2:
        advice = "labels are counted from 1, so that each stands for its neighbour: count from 0"
        yield Finding("fault", name, f"class 0 never occurs, and all others to {n - 1} do", advice)
    elif len(train) == 1 < n:
        yield Finding(
            "fault", name, f"all training answers are class {next(iter(train))}", "there is nothing to tell apart: look at the labels"
        )
    elif unused:
        seen = f"{share(len(unused), n)} classes never occur in training: {', '.join(map(str, unused[:10]))}"
        yield Finding("warning", name, seen, "they cannot be learned; are labels read and numbered rightly?")
    if missing := sorted(c for c in valid if not train[c]):
        yield Finding(
            "warning", name, f"classes {', '.join(map(str, missing[:10]))} occur in validation only", "split so that both sides have all"
        )
    rare = [c for c in train if c not in valid]
    if rare and valid:
        seen = f"validation has no example of classes {', '.join(map(str, sorted(rare)[:10]))}"
        yield Finding("warning", name, seen, "its figures will not say how well those are learned: hold out more")
    if not unused and not missing and not rare:
        most = train.most_common(1)[0]
        yield Finding(
            "ok", name, f"{n} classes, all on both sides; the most frequent, {most[0]}, is {share(most[1], train.total())} answers"
        )


def shared_rows(p: Patient) -> Iterator[Finding]:
    """Validation asks what training has not shown."""
    name = "held out"
    train, valid = ([piece for piece in side.pieces if comparable(p, piece)] for side in (p.train, p.held_out))
    if not train or not valid:
        return
    known = {piece.key for piece in train}
    again = [piece.key in known for piece in valid]
    windows = [piece for piece in valid if len(piece.fed) >= GRAM]
    if p.shift is not None and valid[0].source is None and windows:  # cut elsewhere, the same text is no equal row
        shown = grams(np.concatenate([piece.fed for piece in train]))
        again = np.isin(np.concatenate([grams(piece.fed[:GRAM]) for piece in windows]), shown).tolist()
    n = sum(again)
    seen = f"{share(n, len(again))} validation rows stand in training too"
    if n <= 0.01 * len(again):
        if valid[0].picture is None:  # pictures to learn from may be others each time, so that none would be found again
            yield Finding("ok", name, seen)
    else:
        level = "fault" if n > 0.1 * len(again) else "warning"
        yield Finding(
            level, name, seen, "the validation loss will flatter: hold out texts that are not in --data, without their duplicates"
        )
    if (doubles := len(train) - len(known)) > 0.1 * len(train):
        yield Finding(
            "warning",
            "duplicates",
            f"{share(doubles, len(train))} training rows repeat another",
            "they count for more than others: drop them?",
        )


def comparable(p: Patient, piece: Piece) -> bool:
    return p.shift is None or piece.source is not None or len(piece.fed) >= SHORT


def grams(ids: np.ndarray) -> np.ndarray:
    """A 64-bit number of each GRAM ids in a row: equal for equal ids, and else hardly ever."""
    n = max(len(ids) - GRAM + 1, 0)
    sums = np.zeros(n, np.uint64)
    for at in range(GRAM):
        sums = sums * np.uint64(0x9E3779B97F4A7C15) + ids[at : at + n].astype(np.uint64) + np.uint64(1)
    return sums


def conflicts(p: Patient) -> Iterator[Finding]:
    """The same input does not have different answers."""
    if not p.classifies or not p.train.pieces:
        return
    answers: dict[bytes, set[bytes]] = {}
    for piece in p.train.pieces:
        answers.setdefault(piece.key, set()).add(piece.answers.tobytes())
    torn = sum(len(answers[piece.key]) > 1 for piece in p.train.pieces)
    if torn > 0.02 * len(p.train.pieces):
        seen = f"{share(torn, len(p.train.pieces))} training rows are the same as another and have a different answer"
        yield Finding(
            "warning",
            "labels",
            seen,
            "no model can learn both: look at these rows, and whether texts are cut or lose their unknown symbols",
        )


def cut_rows(p: Patient) -> Iterator[Finding]:
    """Few rows are as long as the longest: a heap there is what was cut off."""
    for name, rows in (("source length", [piece.source for piece in p.train.pieces]), ("length", [piece.fed for piece in p.train.pieces])):
        lengths = np.array([len(row) for row in rows if row is not None])
        if len(lengths) < 20 or not lengths.any() or (name == "length" and p.shift == 1 and p.train.pieces[0].source is None):
            continue
        counts = np.bincount(lengths)
        most, below = int(counts[-1]), counts[-9:-1]
        if len(counts) > 16 and most > 0.1 * len(lengths) and most > 5 * below.mean() and most < len(lengths):
            seen = f"{share(most, len(lengths))} rows are exactly {len(counts) - 1} tokens, the longest there are: they seem to be cut"
            yield Finding("warning", name, seen, "what follows there is not seen: give a larger --context")
        else:
            yield Finding("ok", name, f"median {int(np.median(lengths))} tokens, longest {len(counts) - 1}")


def unknown_symbols(p: Patient) -> Iterator[Finding]:
    """Texts are not made of what the tokenizer does not know."""
    if p.unknown is None or not p.train.pieces:
        return
    for side, looked in (("training", p.train), ("validation", p.held_out)):
        read = [piece.fed if piece.source is None else piece.source for piece in looked.pieces]
        tokens, unknown = sum(map(len, read)), sum(int((ids == p.unknown).sum()) for ids in read)
        rows = sum(len(ids) > 0 and (ids == p.unknown).mean() > 0.5 for ids in read)
        advice = "the tokenizer was made for other texts: another language, spelling or kind (--tokenizer)"
        if rows > 0.01 * len(read) or unknown > 0.05 * tokens:
            level = "fault" if rows > 0.2 * len(read) else "warning"
            seen = f"{share(unknown, tokens)} {side} tokens are unknown symbols; in {share(rows, len(read))} rows they are the most part"
            yield Finding(level, "unknown symbols", seen, advice)
        else:
            yield Finding("ok", "unknown symbols", f"{share(unknown, tokens)} {side} tokens")


CHECKS = (asked_answers, shift_of_answers, the_end, prompts, classes, shared_rows, conflicts, cut_rows, unknown_symbols)
