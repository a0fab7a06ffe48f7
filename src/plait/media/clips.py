"""Clips of videos, animations, folders of pictures and arrays as numbers: np.uint8 [T, H, W, 3], frames spread evenly over the whole."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from plait.errors import InputError
from plait.media.pictures import PIXELS, check_size, decoding, opened, read_picture, rgb, undecoded

ANIMATIONS = {".gif", ".webp", ".png", ".apng", ".avif"}
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2", ".dcm"}  # a folder's frames
CLIP_PIXELS = 8 * PIXELS  # of all frames of a clip: 1.6 GB
SECOND = 1_000_000  # of a container's own clock
LACKING = 0.05  # share of a video's stated length that may be missing: streams of one file end at different times


def read_clip(path: str | Path, frames: int) -> np.ndarray:
    """np.uint8 [frames, H, W, 3] of a video (PyAV), an animation (.gif, .webp, .apng ...), a folder of pictures or a .npy [T, H, W, 3].

    The whole is cut into `frames` equal segments, and the frame in the middle of each is taken (`evenly`): of few frames some come
    twice. Pictures of a folder are in the order of their names, 2 before 10, and of one size; names that begin with a full stop and
    files that are no pictures are passed over. A video is turned as its file says and decoded once, whatever its length.

    InputError names the file and what was found: no frames, no picture in it (sound alone), damaged, broken off, too large.
    """
    path = Path(path)
    if frames < 1:
        raise InputError(f"{frames} frames of {path}; expected at least one")
    if path.is_dir():
        return _folder(path, frames)
    suffix = path.suffix.lower()
    return (_array if suffix == ".npy" else _animation if suffix in ANIMATIONS else _video)(path, frames)


def evenly(n: int, frames: int) -> list[int]:
    """Which of `n` frames are taken: those in the middle of `frames` equal segments, in order."""
    return [(2 * segment + 1) * n // (2 * frames) for segment in range(frames)]


def in_order(names: Iterable[Path]) -> list[Path]:
    """Paths by name, with the numbers in it as numbers: frame2 before frame10."""
    return sorted(names, key=lambda path: [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)])


def _stacked(pictures: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    for picture, name in zip(pictures, names):
        if picture.shape != pictures[0].shape:
            sizes = [f"{one.shape[1]} x {one.shape[0]}" for one in (picture, pictures[0])]
            raise InputError(f"{name}: {sizes[0]} pixels, but {names[0]} has {sizes[1]}; expected frames of one size")
    return np.stack(pictures)


def _check(height: int, width: int, frames: int, name: str) -> None:
    check_size(height, width, name)
    if height * width * frames > CLIP_PIXELS:
        raise InputError(
            f"{name}: {frames} frames of {width:,} x {height:,} are more than {CLIP_PIXELS:,} pixels: take fewer, or smaller ones"
        )


def _folder(path: Path, frames: int) -> np.ndarray:
    with decoding(str(path)):
        files = in_order(one for one in path.iterdir() if one.suffix.lower() in PICTURES and not one.name.startswith("."))
    if not files:
        raise InputError(f"{path}: holds no pictures; expected the frames of a clip ({', '.join(sorted(PICTURES))})")
    chosen = [files[index] for index in evenly(len(files), frames)]
    first = read_picture(chosen[0])
    _check(first.shape[0], first.shape[1], frames, str(path))
    return _stacked([first, *map(read_picture, chosen[1:])], [str(file) for file in chosen])


def _array(path: Path, frames: int) -> np.ndarray:
    with opened(path, str(path)), decoding(str(path)):
        held = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(held, np.ndarray) or held.dtype != np.uint8 or held.ndim != 4 or held.shape[-1] != 3:
            found = f"{held.dtype} {list(held.shape)}" if isinstance(held, np.ndarray) else "an archive"
            raise InputError(f"{path}: {found}; expected uint8 [frames, height, width, 3]")
        if not len(held):
            raise InputError(f"{path}: has no frames")
        _check(held.shape[1], held.shape[2], frames, str(path))
        return held[evenly(len(held), frames)]


def _animation(path: Path, frames: int) -> np.ndarray:
    kept: dict[int, np.ndarray] = {}
    with opened(path, str(path)) as stream, decoding(str(path)):
        image = undecoded(stream, str(path))
        _check(image.height, image.width, frames, str(path))
        n = getattr(image, "n_frames", 1)
        chosen = evenly(n, frames)
        for index in dict.fromkeys([*chosen, n - 1]):  # a GIF that breaks off is noticed in its last frame alone
            image.seek(index)
            kept[index] = rgb(image)
    return _stacked([kept[index] for index in chosen], [str(path)] * frames)


# ---- videos ----


def _video(path: Path, frames: int) -> np.ndarray:
    n = _n_packets(path)
    while True:  # once where a packet is a frame, as nearly always; twice where some packets show nothing or two fields are one frame
        clip, found = _decoded(path, evenly(n, frames))
        if found == n:
            return clip
        n = found


def _n_packets(path: Path) -> int:
    """How many packets of pictures the video has; nothing is decoded."""
    n, end = 0, 0.0
    with _container(path) as (container, stream):
        for packet in container.demux():
            if packet.is_corrupt:
                raise InputError(f"{path}: is damaged or breaks off: {n} frames could be read before that")
            n += packet.stream_index == stream.index and packet.size > 0
            if packet.pts is not None and packet.time_base is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        length = (container.duration or 0) / SECOND
        end -= (container.start_time or 0) / SECOND
        stated = stream.frames  # 0 where the file does not say
    if n and end < length * (1 - LACKING):
        raise InputError(f"{path}: breaks off after {end:.1f} of {length:.1f} seconds; fetch or encode it again")
    if n and n < stated * (1 - LACKING):
        raise InputError(f"{path}: breaks off after {n} of {stated} frames; fetch or encode it again")
    return n


def _decoded(path: Path, chosen: Sequence[int]) -> tuple[np.ndarray, int]:
    """(those frames, how many there are in all)"""
    kept: dict[int, np.ndarray] = {}
    wanted, n = set(chosen), 0
    with _container(path) as (container, stream):
        _check(stream.height, stream.width, len(chosen), str(path))
        for frame in container.decode(stream):
            if n in wanted:
                _check(frame.height, frame.width, len(chosen), str(path))
                # Counter-clockwise, as in numpy; phones store every video as it comes off the sensor.
                kept[n] = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            n += 1
    if not n:
        raise InputError(f"{path}: a video without frames")
    return _stacked([kept[index] for index in chosen if index in kept], [str(path)] * len(chosen)) if kept else np.empty(0), n


@contextmanager
def _container(path: Path) -> Iterator[tuple[Any, Any]]:
    """(PyAV's container, its stream of pictures)"""
    try:
        import av
    except ImportError:
        raise InputError(f"{path}: videos need PyAV: pip install 'plait[video]'") from None
    with opened(path, str(path)) as file, decoding(str(path)), av.open(file) as container:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise InputError(f"{path}: holds no video, but {kinds}")
        stream = container.streams.video[0]
        stream.thread_count = 1  # workers read side by side
        yield container, stream
