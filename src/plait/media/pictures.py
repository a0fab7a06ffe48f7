"""Pictures of files, of bytes and of Pillow, as numbers: np.uint8 [H, W, 3], red, green, blue, the way up that a viewer shows them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from plait.errors import InputError

PIXELS = 2**26  # of one picture, 8,192 x 8,192: 200 MB as RGB; under the size that Pillow itself begins to warn of

# Pillow knows more, and some of those run programs of others (EPS) or have no mark to be known by (TGA).
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
JPEG, DICOM = b"\xff\xd8\xff", b"DICM"
DICOM_AT = 128  # bytes before the mark (DICOM PS3.10, section 7.1)
ORIENTATION = 0x0112  # the tag of EXIF


def read_picture(source: Any, where: str | None = None) -> np.ndarray:
    """np.uint8 [H, W, 3] of a path (str or Path), of a file's bytes or of a Pillow image; `where` names it in errors.

    Turned as EXIF says. What shows through is put on white; of an animation the first picture is read; CMYK, palettes, grey and
    one bit become RGB. Grey of more than 8 bits, and floats, are windowed (`windowed`); of 16-bit colours Pillow gives the high byte.
    DICOM: see `medical.read_dicom`. A JPEG beyond `PIXELS` is read at a half, a quarter or an eighth of its size (a box drawn in it has
    to shrink too: `picture_size` says what the file has), any other is refused before its pixels are decoded.

    InputError names the file and what was found: no file, empty, no picture, damaged, broken off, too large.
    """
    name = where or named(source)
    if not isinstance(source, str | Path | bytes):
        if not isinstance(source, pillow().Image):
            raise InputError(f"{name}: a {type(source).__name__}; expected a path, the bytes of a file or a Pillow image")
        check_size(source.height, source.width, name)
        with decoding(name):
            return _upright(source)
    with opened(source, name) as stream:
        if _is_dicom(source, stream):
            from plait.media.medical import read_dicom

            return read_dicom(stream, name)
        with decoding(name):
            image = undecoded(stream, name)
            if image.width * image.height > PIXELS and image.format == "JPEG":
                _reduce(image, stream)
            check_size(image.height, image.width, name)
            image.load()
            return _upright(image)


def picture_size(source: str | Path | bytes, where: str | None = None) -> tuple[int, int]:
    """(height, width) of the picture as its file has it, turned as EXIF says; nothing is decoded. InputError as `read_picture`."""
    name = where or named(source)
    with opened(source, name) as stream:
        if _is_dicom(source, stream):
            from plait.media.medical import dicom_size

            return dicom_size(stream, name)
        with decoding(name):
            image = undecoded(stream, name)
            # Of a TIFF Pillow gives the size as it stands turned; PNG's own getexif would decode the picture.
            turned = image.format != "TIFF" and _orientation(image, pillow().Image.getexif) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)


def rgb(image: Any) -> np.ndarray:
    """np.uint8 [H, W, 3] of a Pillow image of any mode, on white where it shows through; as it lies, whatever EXIF says."""
    if image.mode[0] in "IF":  # I, I;16, I;16B ..., F: convert() would cut them off at 255
        return np.repeat(windowed(np.asarray(image))[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = pillow().new("RGB", image.size, "white")
        canvas.paste(image, mask=image.getchannel("A"))
        image = canvas
    return np.array(image.convert("RGB"))


def windowed(values: np.ndarray, low: float | None = None, high: float | None = None) -> np.ndarray:
    """Numbers of any range as np.uint8 of the same shape: `low` and less is 0, `high` and more is 255, between them it is linear.

    Without a window it is as wide as the values are, and always holds zero: so 16-bit photographs that reach 65,535 are divided
    by 257, and 12 bits in a 16-bit file, or floats of 0 to 1, keep all of their contrast. What is not a number is 0.
    """
    values = np.asarray(values, np.float32)
    if low is None or high is None:
        finite = np.isfinite(values)
        low, high = (float(edge(values, initial=0, where=finite)) for edge in (np.min, np.max))
    with np.errstate(all="ignore"):  # infinite values stand at the edges
        levels = (values - low) * (255 / (high - low)) if high > low else np.where(values > high, 255, 0)
    return np.rint(np.nan_to_num(np.clip(levels, 0, 255), nan=0)).astype(np.uint8)


# ---- what reading clips and DICOM needs too ----


def pillow() -> Any:
    """The module PIL.Image; InputError where there is none."""
    try:
        from PIL import Image
    except ImportError:
        raise InputError("pictures need Pillow: pip install 'plait[vision]'") from None
    return Image


def named(source: object) -> str:
    """What to call a source in an error."""
    return str(source) if isinstance(source, str | Path) else "the bytes of a picture" if isinstance(source, bytes) else "the picture"


def check_size(height: int, width: int, name: str) -> None:
    if height < 1 or width < 1:
        raise InputError(f"{name}: {width} x {height} pixels; expected at least one")
    if height * width > PIXELS:
        advice = "make it smaller, or cut it into pieces"
        raise InputError(f"{name}: {width:,} x {height:,} pixels are more than can be read ({PIXELS:,}): {advice}")


@contextmanager
def opened(source: str | Path | bytes, name: str) -> Iterator[IO[bytes]]:
    """A file or bytes as a stream that is not empty."""
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{name}: is a directory; expected a file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with stream:
        if not stream.read(1):
            raise InputError(f"{name}: is empty (0 bytes)")
        stream.seek(0)
        yield stream


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Decoders are programs of others and fail in any way: each is an InputError that names what was read."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{name}: is damaged or breaks off before its end: {type(error).__name__}: {error}".rstrip(": ")) from None


def undecoded(stream: IO[bytes], name: str) -> Any:
    """The picture of a stream, of which only the header was read."""
    module = pillow()
    from PIL import JpegImagePlugin, UnidentifiedImageError

    head = stream.read(16)
    stream.seek(0)
    try:
        # Image.open would refuse a large JPEG, which can be read reduced, and look for more than one picture in it.
        return JpegImagePlugin.JpegImageFile(stream) if head.startswith(JPEG) else module.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        raise InputError(f"{name}: is no picture that can be read, or its header is damaged; it begins with {head!r}") from None
    except (module.DecompressionBombError, module.DecompressionBombWarning) as error:
        raise InputError(f"{name}: is larger than can be read ({PIXELS:,} pixels): {error}") from None


# ---- the inside ----


def _is_dicom(source: object, stream: IO[bytes]) -> bool:
    mark = stream.read(DICOM_AT + len(DICOM))[DICOM_AT:]
    stream.seek(0)
    return mark == DICOM or (isinstance(source, str | Path) and Path(source).suffix.lower() in (".dcm", ".dicom"))


def _reduce(image: Any, stream: IO[bytes]) -> None:
    """Has libjpeg decode at the largest part of the size that `PIXELS` allows, if it can do so row by row.

    Of a file in several scans it would hold all coefficients of the whole picture, so that one stays as large as it is.
    """
    length = 6 + 2 * image.layers  # of the header of a scan that has all colours (ITU T.81, B.2.3): the stream stands behind it
    stream.seek(-length, io.SEEK_CUR)
    if "progressive" in image.info or int.from_bytes(stream.read(2), "big") != length:
        return
    for part in (2, 4, 8):
        if -(-image.width // part) * -(-image.height // part) <= PIXELS:
            image.draft(None, (max(1, image.width // part), max(1, image.height // part)))
            return


def _upright(image: Any) -> np.ndarray:
    picture, orientation = rgb(image), _orientation(image, type(image).getexif)
    if orientation >= 5:
        picture = picture.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


def _orientation(image: Any, getexif: Any) -> int:
    """1 to 8 as EXIF has it; 1 where it says nothing, or nothing that can be read."""
    try:
        said = getexif(image).get(ORIENTATION, 1)
    except Exception:  # a viewer shows a picture with damaged EXIF too
        return 1
    return said if said in range(1, 9) else 1
