"""Clips: which frames are taken, of videos and all that can stand for one, and what cannot be read is named with its file."""

import re

import numpy as np
import pytest

from plait.errors import InputError
from plait.media import clips, pictures
from plait.media.clips import evenly, read_clip

Image = pytest.importorskip("PIL.Image")
N = 30  # frames of the videos here; each is of one grey, 8 levels lighter than the one before


def greys(n=N, height=48, width=64):
    return [np.full((height, width, 3), 8 * index, np.uint8) for index in range(n)]


def video(path, frames, codec="libx264", audio=False, **options):
    av = pytest.importorskip("av")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    with av.open(str(path), "w", **options) as container:
        if frames is not None:
            stream = container.add_stream(codec, rate=15)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.bit_rate = 4_000_000
        if audio:
            sound = container.add_stream("aac", rate=16_000)
        container.start_encoding()
        for frame in frames or ():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if frames is not None:
            container.mux(stream.encode())
        if audio:
            piece = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
            piece.sample_rate = 16_000
            container.mux(sound.encode(piece))
            container.mux(sound.encode())
    return path


def taken(clip):
    """Which of `greys` the frames of a clip are."""
    return (clip.mean((1, 2, 3)) / 8).round().astype(int).tolist()


# ---- which frames ----


@pytest.mark.parametrize(("n", "frames"), [(30, 5), (31, 4), (7, 7), (3, 8), (1, 3), (300, 8), (10, 1)])
def test_frames_are_the_middles_of_equal_segments(n, frames):
    got = evenly(n, frames)
    middles = (np.arange(frames) + 0.5) * n / frames  # in frames, of which each is as long as one
    assert got == np.floor(middles).astype(int).tolist()
    assert got == sorted(got) and got[0] >= 0 and got[-1] < n


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.mov", "mpeg4"), ("a.ts", "libx264")],
)
def test_videos(name, codec, tmp_path):
    path = video(tmp_path / name, greys(), codec)
    for frames in (1, 5, 8, 45):
        clip = read_clip(path, frames)
        assert clip.dtype == np.uint8 and clip.shape == (frames, 48, 64, 3) and taken(clip) == evenly(N, frames)


def test_a_video_with_sound_and_frames_that_are_shown_later(tmp_path):
    path = video(tmp_path / "a.mp4", greys(), audio=True, options={"bf": "3"})
    assert taken(read_clip(str(path), 6)) == evenly(N, 6)


def test_frames_are_counted_again_where_packets_are_no_frames(tmp_path, monkeypatch):
    path = video(tmp_path / "a.mkv", greys())
    for wrong in (N * 2, N - 9, 10**6):
        monkeypatch.setattr(clips, "_n_packets", lambda path, wrong=wrong: wrong)
        assert taken(read_clip(path, 6)) == evenly(N, 6)


def test_a_video_is_turned_as_its_file_says(tmp_path):
    left = np.zeros((48, 64, 3), np.uint8)
    left[:, :32] = 200
    path = video(tmp_path / "a.mp4", [left] * 4)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 4 + 36  # ISO/IEC 14496-12, section 8.3.2, version 0
    fixed = [int.from_bytes(data[matrix + 4 * n : matrix + 4 * n + 4], "big", signed=True) / 2**16 for n in (0, 1, 3, 4)]
    assert fixed == [1, 0, 0, 1]
    for n, value in zip((0, 1, 3, 4), (0, 1, -1, 0)):  # (x, y) is shown at (-y, x): a quarter to the right
        data[matrix + 4 * n : matrix + 4 * n + 4] = (value * 2**16).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    clip = read_clip(path, 2)
    assert clip.shape == (2, 64, 48, 3) and clip[:, :30].mean() > 190 and clip[:, 34:].mean() < 10


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.apng", "a.png"])
def test_animations(name, tmp_path):
    first, *rest = [Image.fromarray(frame) for frame in greys()]
    options = {"lossless": True} if name.endswith("webp") else {}
    first.save(tmp_path / name, save_all=True, append_images=rest, duration=40, **options)
    clip = read_clip(tmp_path / name, 7)
    assert clip.shape == (7, 48, 64, 3) and taken(clip) == evenly(N, 7)
    assert taken(read_clip(tmp_path / name, 40)) == evenly(N, 40)


def test_a_folder_of_frames_in_the_order_of_their_numbers(tmp_path):
    for index, frame in enumerate(greys(12)):
        Image.fromarray(frame).save(tmp_path / f"frame{index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "._frame0.png").write_bytes(b"what a Mac leaves behind")
    assert taken(read_clip(tmp_path, 12)) == list(range(12))
    assert taken(read_clip(tmp_path, 5)) == evenly(12, 5)


def test_an_array(tmp_path):
    np.save(tmp_path / "a.npy", np.stack(greys()))
    clip = read_clip(tmp_path / "a.npy", 4)
    assert type(clip) is np.ndarray and clip.flags.writeable and taken(clip) == evenly(N, 4)


# ---- what cannot be read ----


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.gif", "")]
)
def test_videos_that_break_off(name, codec, tmp_path):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(N)]
    path = tmp_path / name
    if codec:
        video(path, noise, codec, **({"options": {"movflags": "faststart"}} if name == "a.mp4" else {}))
    else:
        first, *rest = map(Image.fromarray, noise)
        first.save(path, save_all=True, append_images=rest)
    data = path.read_bytes()
    assert read_clip(path, 3).shape == (3, 48, 64, 3)
    for share in (0.01, 0.3, 0.6, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(InputError, match=re.escape(str(path))):
            read_clip(path, 3)


def test_sound_alone_and_no_frames(tmp_path):
    with pytest.raises(InputError, match=r"sound\.mp4: holds no video, but audio"):
        read_clip(video(tmp_path / "sound.mp4", None, audio=True), 4)
    with pytest.raises(InputError, match=r"none\.mkv: .*(no frames|without frames|damaged)"):
        read_clip(video(tmp_path / "none.mkv", []), 4)
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "none.npy", np.zeros((0, 4, 4, 3), np.uint8))
    np.save(tmp_path / "floats.npy", np.zeros((2, 4, 4, 3)))
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    (tmp_path / "short.npy").write_bytes((tmp_path / "floats.npy").read_bytes()[:150])
    for name, found in {
        "text.mp4": "damaged", "empty.mp4": "is empty", "absent.mp4": "no such file", "absent.gif": "no such file", "folder": "no pictures",
        "none.npy": "no frames", "floats.npy": "float64", "objects.npy": "damaged", "short.npy": "breaks off",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=f"{re.escape(name)}.*{found}"):
            read_clip(tmp_path / name, 4)
    with pytest.raises(InputError, match="0 frames"):
        read_clip(tmp_path / "text.mp4", 0)


def test_frames_of_different_sizes_and_a_damaged_one(tmp_path):
    for index, width in enumerate((8, 8, 9)):
        Image.new("RGB", (width, 8)).save(tmp_path / f"{index}.png")
    with pytest.raises(InputError, match=r"2\.png: 9 x 8 pixels, but .*0\.png has 8 x 8"):
        read_clip(tmp_path, 3)
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"1\.png: is no picture"):
        read_clip(tmp_path, 3)


def test_clips_have_bounds(tmp_path, monkeypatch):
    path = video(tmp_path / "a.mkv", greys(4))
    np.save(tmp_path / "a.npy", np.stack(greys(4)))
    monkeypatch.setattr(clips, "CLIP_PIXELS", 64 * 48 * 4)
    for source in (path, tmp_path / "a.npy"):
        assert len(read_clip(source, 4)) == 4
        with pytest.raises(InputError, match="5 frames of 64 x 48"):
            read_clip(source, 5)
    monkeypatch.setattr(pictures, "PIXELS", 100)
    with pytest.raises(InputError, match="64 x 48 pixels are more"):
        read_clip(path, 1)
