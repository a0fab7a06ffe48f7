"""Models of pictures and clips that are ready: their labels, vectors, and boxes around objects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plait.core.heads import pooled
from plait.core.stream import Stream
from plait.errors import InputError
from plait.hub.labels import labels_of, problem_of
from plait.hub.ready import Parts, Ready, Row
from plait.media.preparing import Preparation
from plait.tasks.detecting import answers, outputs, readable
from plait.tasks.encoding import nearest
from plait.tasks.labels import Classified, classified
from plait.text.special import read_object

FILE = "preprocessor_config.json"
AT_ONCE = 8  # pictures in one batch: more are no faster on a CPU, and take memory
MOST = 100  # objects of a picture
LIKELY = 0.5  # how probable an object must be to be shown


def preparation_in(folder: Path, processor: str) -> Preparation | None:
    """What a checkpoint or a run does to pixels, as its file says; None where there is no such file."""
    path = folder / FILE
    return Preparation.of(read_object(path, f"the object of a {FILE}"), processor, str(path)) if path.exists() else None


class PictureModel(Ready):
    """Called with a picture or a list of them: a file's name, its bytes, a PIL image, or np.uint8 [H, W, 3].

    A model of clips takes videos: a file's name, a folder of frames, or np.uint8 [T, H, W, 3].
    """

    few_rows = 256  # entries of a picture

    @property
    def clips(self) -> bool:
        return self.net.takes(self.net.towers[0]) == "clips"

    @property
    def prepare(self) -> Preparation:
        if self.parts.preparation is None:
            raise InputError(f"{self.parts.folder}: has no {FILE}, so this model takes pixels (`logits`), not pictures; add the file")
        return self.parts.preparation

    def preparation(self) -> dict[str, str]:
        said = "pixels, there is no " + FILE if self.parts.preparation is None else str(self.parts.preparation.written())
        return {"input": said}

    def read(self, source: Any) -> np.ndarray:
        """np.uint8 [H, W, 3] of a picture, or [T, H, W, 3] of a clip."""
        if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 3 + self.clips and source.shape[-1] == 3:
            return source
        if self.clips:
            from plait.media.clips import read_clip

            return read_clip(source, self.parts.settings.frames)  # type: ignore[arg-type]
        from plait.media.pictures import read_picture

        return read_picture(source)

    def size(self, source: Any, picture: np.ndarray) -> tuple[int, ...]:
        """Height and width that an answer's boxes are in: of the picture as it was read."""
        return picture.shape[-3:-1]

    def batches(self, sources: Sequence[Any]) -> Iterator[tuple[Stream, torch.Tensor]]:
        """Streams of a few pictures each, in their order, and how large [B, 2] these were."""
        device = next(self.net.parameters()).device
        for start in range(0, len(sources), AT_ONCE):
            pictures = [self.read(source) for source in sources[start : start + AT_ONCE]]
            pixels, real = self.prepare.batch(pictures)
            sizes = torch.tensor([self.size(source, picture) for source, picture in zip(sources[start:], pictures)])
            yield Stream(torch.from_numpy(pixels).to(device), real=None if real is None else torch.from_numpy(real).to(device)), sizes

    def logits(self, pixels: Any) -> Any:  # type: ignore[override]
        """What the head says of prepared pixels, float32 [B, 3, H, W] (clips [B, T, 3, H, W]); of a bare model hidden vectors."""
        wanted = "[B, T, 3, H, W]" if self.clips else "[B, 3, H, W]"
        try:
            given = torch.from_numpy(np.array(pixels, np.float32))
        except (TypeError, ValueError) as error:
            raise InputError(f"pixels are no numbers in rows of one length ({error}); expected {wanted}") from None
        if given.dim() != 4 + self.clips or not given.numel():
            raise InputError(f"pixels of shape {list(given.shape)}: expected {wanted}")
        return self.raw(Stream(given.to(next(self.net.parameters()).device)))

    def said(self, stream: Stream) -> Any:
        """Scores as a task reads them."""
        return self.raw(stream)

    @torch.inference_mode()
    def raw(self, stream: Stream) -> Any:
        """Scores of the head as numpy; InputError where the model does not take pictures of this shape."""
        try:
            return self.scored(stream)
        except ValueError as error:
            raise InputError(f"{self.parts.folder}: {error}") from None

    def scored(self, stream: Stream) -> Any:
        s = self.net(stream)[self.net.towers[0]]
        for head in self.net.heads.values():
            return head(pooled(head, s)).float().cpu().numpy()
        return s.x.float().cpu().numpy()


def given_as_list(given: Any) -> tuple[list[Any], bool]:
    """(pictures, whether it was one alone)"""
    one = not isinstance(given, list | tuple)
    return ([given] if one else list(given)), one


class ClassifyPictures(PictureModel):
    """Labels of a picture or a clip: `Classified`."""

    task = "classify"

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.labels = labels_of(self.config)
        self.problem = problem_of(self.config, len(self.labels))

    def classify(self, sources: Sequence[Any]) -> list[Classified]:
        return [classified(torch.from_numpy(row), self.labels, self.problem) for s, _ in self.batches(sources) for row in self.said(s)]

    def __call__(self, picture: Any) -> Any:
        pictures, one = given_as_list(picture)
        return self.classify(pictures)[0] if one else self.classify(pictures)

    def rows(self, texts: Sequence[str], first: int = 1) -> list[Row]:
        """(line, JSON) of each file, for the command line."""
        found = self.classify(texts)
        return [("\t".join(f"{n}\t{c.scores[n]:.4f}" for n in c.labels), {"labels": list(c.labels), "scores": c.scores}) for c in found]


class EmbedPictures(PictureModel):
    """Pictures to vectors: a float32 array [N, D], of the class token."""

    task = "embed"

    def embed(self, sources: Sequence[Any]) -> np.ndarray:
        found = [self.said(stream)[:, 0] for stream, _ in self.batches(sources)]
        return np.concatenate(found) if found else np.zeros((0, 0), np.float32)

    def __call__(self, picture: Any) -> Any:
        pictures, one = given_as_list(picture)
        return self.embed(pictures)[0] if one else self.embed(pictures)

    def similar(self, queries: Any, pictures: Sequence[Any], n_best: int = 5) -> Any:
        """The `n_best` of `pictures` for each query, nearest by cosine first."""
        asked, one = given_as_list(queries)
        if not pictures:
            raise InputError("there are no pictures to compare with; give at least one")
        found = nearest(self.embed(asked), self.embed(pictures), [str(p) for p in pictures], n_best)
        return found[0] if one else found

    def scored(self, stream: Stream) -> Any:
        return self.net(stream)[self.net.towers[0]].x.float().cpu().numpy()

    def rows(self, texts: Sequence[str], first: int = 1, similar: Sequence[str] | None = None, n_best: int | None = None) -> list[Row]:
        """(line, JSON) of each file, for the command line: its vector, or which of the files `similar` are nearest."""
        if similar is not None:
            ranked = self.similar(list(texts), similar, n_best or 5) if texts else []
            return [("\n".join(f"{f.score:.4f}\t{f.text}" for f in one), {"similar": [vars(f) for f in one]}) for one in ranked]
        if n_best is not None:
            raise InputError(f"n_best {n_best}: a picture has one vector; n_best goes with pictures to compare it with (--similar FILE)")
        return [(" ".join(f"{x:.6g}" for x in v), {"embedding": [float(x) for x in v]}) for v in self.embed(texts)]


@dataclass(frozen=True)
class Object:
    """Something on a picture: `box` is x0, y0, x1, y1 in pixels of the picture's file, the way up that viewers show it."""

    label: str
    score: float
    box: tuple[float, float, float, float]


class DetectPictures(PictureModel):
    """The objects on a picture, the surest first: a list of `Object`."""

    task = "detect"

    def __init__(self, parts: Parts):
        super().__init__(parts)
        self.labels = labels_of(self.config)

    def size(self, source: Any, picture: np.ndarray) -> tuple[int, ...]:
        """Of the file: a very large JPEG is read at a part of its size."""
        from plait.media.pictures import picture_size

        return picture_size(source) if isinstance(source, str | Path | bytes) else picture.shape[:2]

    def detect(self, sources: Sequence[Any], threshold: float = LIKELY) -> list[list[Object]]:
        found = []
        for stream, sizes in self.batches(sources):
            scores, boxes = map(torch.from_numpy, self.said(stream))
            for f in answers(scores, boxes, sizes, threshold, MOST):
                rows = zip(f.labels, f.scores, f.boxes, strict=True)
                found.append([Object(self.labels[n], float(score), (*map(float, box),)) for n, score, box in rows])  # type: ignore[arg-type]
        return found

    def __call__(self, picture: Any, threshold: float = LIKELY) -> Any:
        pictures, one = given_as_list(picture)
        return self.detect(pictures, threshold)[0] if one else self.detect(pictures, threshold)

    def said(self, stream: Stream) -> Any:
        scores, boxes = map(torch.from_numpy, self.raw(stream))
        return tuple(found.numpy() for found in readable(self.net, scores, boxes, MOST))

    def scored(self, stream: Stream) -> Any:
        """(scores [B, N, C + 1], boxes [B, N, 4] as cx cy w h in 0..1)"""
        scores, boxes = outputs(self.net, stream, self.parts.settings.n_queries)
        return scores[-1].cpu().numpy(), boxes[-1].cpu().numpy()

    def drawn(self, picture: Any, found: Sequence[Object]) -> np.ndarray:
        """np.uint8 [H, W, 3] with the objects' boxes on it."""
        from plait.media.boxes import drawn

        read = self.read(picture)
        shrunk = np.divide(read.shape[1::-1], self.size(picture, read)[::-1])
        boxes = np.array([one.box for one in found], np.float32).reshape(-1, 4) * np.tile(shrunk, 2).astype(np.float32)
        return drawn(read, boxes, [one.label for one in found], [one.score for one in found], self.labels)

    def rows(self, texts: Sequence[str], first: int = 1, threshold: float = LIKELY, draw: str | None = None) -> list[Row]:
        """(line, JSON) of each file, for the command line: a line an object; with `draw` pictures with boxes go into that folder."""
        rows = list[Row]()
        for number, (text, found) in enumerate(zip(texts, self.detect(texts, threshold), strict=True), first):
            if draw is not None:
                from plait.media.pictures import pillow

                path = Path(draw) / f"{number:04}-{Path(text).stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pillow().fromarray(self.drawn(text, found)).save(path)
            lines = [f"{one.label}\t{one.score:.4f}\t" + "\t".join(f"{x:.1f}" for x in one.box) for one in found]
            rows.append(("\n".join(lines), {"objects": [vars(one) for one in found]}))
        return rows


PICTURES: dict[str, type[Ready]] = {  # by the name of the head
    "classify": ClassifyPictures,
    "pool": EmbedPictures,
    "none": EmbedPictures,
    "detect": DetectPictures,
}
# Of which kind a preprocessor_config.json is that does not say so, by the page's head.
PROCESSORS = {"detect": "DetrImageProcessor"}
