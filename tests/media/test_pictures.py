"""Pictures of every kind are read as they look, and what cannot be read is named with its file, without a traceback or much memory."""

import io
import re
import struct
import tracemalloc
import warnings
import zlib
from contextlib import suppress

import numpy as np
import pytest

from plait.errors import InputError
from plait.media import medical, pictures
from plait.media.pictures import picture_size, read_picture, windowed

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")


@pytest.fixture(scope="module")
def colours():
    """uint8 [23, 31, 3], smooth, no two corners alike."""
    y, x = np.mgrid[:23, :31]
    return np.stack([x * 8, y * 11, 255 - x * 4 - y * 5], -1).astype(np.uint8)


@pytest.fixture(scope="module")
def grey(colours):
    return colours[..., 0]


def encoded(image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def three(levels):
    return np.repeat(levels[..., None], 3, -1)


# ---- what is read ----


def test_a_path_bytes_and_an_image_give_the_same_array(colours, tmp_path):
    image = Image.fromarray(colours)
    image.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), encoded(image), encoded(image, "TIFF"), encoded(image, "BMP"), image):
        read = read_picture(source)
        assert read.dtype == np.uint8 and read.flags.c_contiguous and read.flags.writeable and np.array_equal(read, colours)
    assert not np.shares_memory(read_picture(image), np.asarray(image))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "JPEG2000", "AVIF", "GIF"])
def test_lossy_formats_look_alike(colours, kind):
    if kind == "AVIF" and not pytest.importorskip("PIL.features").check("avif"):
        pytest.skip("this Pillow has no AVIF")
    assert np.abs(read_picture(encoded(Image.fromarray(colours), kind)).astype(int) - colours).mean() < 6


def test_modes_become_rgb(colours, grey):
    assert np.array_equal(read_picture(encoded(Image.fromarray(grey))), three(grey))
    bits = grey > 100
    assert np.array_equal(read_picture(encoded(Image.fromarray(bits))), three(bits * np.uint8(255)))
    palette = Image.fromarray(colours).quantize(200)
    assert np.array_equal(read_picture(encoded(palette)), np.asarray(palette.convert("RGB")))
    # CMYK by its definition: what each ink takes away. JPEGs of it are stored inverted, as Adobe does.
    inks = np.stack([255 - colours[..., 0], 255 - colours[..., 1], 255 - colours[..., 2], np.zeros_like(grey)], -1)
    assert np.array_equal(read_picture(encoded(Image.fromarray(inks, "CMYK"), "TIFF")), colours)
    assert np.abs(read_picture(encoded(Image.fromarray(inks, "CMYK"), "JPEG", quality=95)).astype(int) - colours).mean() < 3


def test_what_shows_through_is_put_on_white(colours, grey):
    alpha = np.linspace(0, 255, grey.size).astype(np.uint8).reshape(grey.shape)
    share = alpha[..., None] / 255
    for levels in (colours, grey[..., None]):
        over = levels * share + 255 * (1 - share)
        read = read_picture(encoded(Image.fromarray(np.concatenate([levels, alpha[..., None]], -1))))
        assert np.abs(read - over).max() <= 1
    palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert read_picture(encoded(palette, transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]]
    assert read_picture(encoded(palette, transparency=bytes([255, 0, 51])))[0, 2].tolist() == [218, 220, 222]  # a fifth of it
    assert read_picture(encoded(palette, "GIF", transparency=0))[0].tolist() == [[255, 255, 255], [40, 50, 60], [70, 80, 90]]
    assert read_picture(encoded(Image.fromarray(colours), transparency=tuple(colours[3, 4].tolist())))[3, 4].tolist() == [255] * 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_keeps_its_contrast(grey, kind):
    exact = np.where(grey == grey.max(), 255, grey)  # reaches white
    assert np.array_equal(read_picture(encoded(Image.fromarray(exact.astype(np.uint16) * 257), kind)), three(exact))
    of_12_bits = (exact / 255 * 4095).round().astype(np.uint16)
    assert np.array_equal(read_picture(encoded(Image.fromarray(of_12_bits), kind)), three(exact))


def test_floats_and_wide_integers_are_windowed(grey):
    exact = np.where(grey == grey.max(), 255, grey)
    for values in (exact / np.float32(255), exact.astype(np.float32) * 1e30, exact.astype(np.int32) * 2**20):
        assert np.array_equal(read_picture(encoded(Image.fromarray(values), "TIFF")), three(exact))
    odd = np.array([[np.nan, -np.inf, -1, 0, 1, np.inf]], np.float32)
    assert read_picture(encoded(Image.fromarray(odd), "TIFF"))[0, :, 0].tolist() == [0, 0, 0, 128, 255, 255]
    assert windowed(np.full((1, 2), np.nan)).tolist() == [[0, 0]] == windowed(np.zeros((1, 2))).tolist()
    for values, levels in (([100, 200], [128, 255]), ([-200, -100], [0, 128]), ([0, 0.5], [0, 255])):  # it always holds zero
        assert windowed(np.array(values)).tolist() == levels
    assert windowed(np.array([3.0, 4.0, 5.0]), 4, 4).tolist() == [0, 0, 255]  # a window of no width is a step


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_picture_stands_as_exif_says(colours, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(
        Image.fromarray(colours), kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {})
    )
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    read = read_picture(data)
    assert np.array_equal(read, expected)
    assert picture_size(data) == read.shape[:2]
    assert np.array_equal(read_picture(Image.open(io.BytesIO(data))), expected)


def test_damaged_exif_turns_nothing(colours):
    for exif in (b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12", b"Exif\0\0nonsense", b"\xff" * 40):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of it
            assert read_picture(encoded(Image.fromarray(colours), "JPEG", exif=exif)).shape == colours.shape


def test_the_first_picture_of_an_animation_is_read(colours):
    frames = [Image.fromarray(colours), Image.fromarray(colours[::-1].copy())]
    for kind in ("PNG", "TIFF", "WEBP"):
        more = {"lossless": True} if kind == "WEBP" else {}
        assert np.array_equal(read_picture(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **more)), colours)


# ---- sizes ----


def bomb(width: int, height: int) -> bytes:
    """A PNG of zeros, a thousand times smaller than what it unpacks to; its pixels are never asked for."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1_000_000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("edge", [8_193, 20_000, 2**31 - 1])
def test_a_picture_beyond_the_bound_is_refused_before_it_is_decoded(edge, tmp_path):
    (tmp_path / "bomb.png").write_bytes(bomb(edge, edge))
    tracemalloc.start()
    with pytest.raises(InputError, match=r"bomb\.png: .*(\d pixels|than can be read)"):
        read_picture(tmp_path / "bomb.png")
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_a_large_jpeg_is_read_smaller(colours, monkeypatch):
    large = np.kron(colours, np.ones((16, 16, 1), np.uint8))  # 368 x 496
    data = encoded(Image.fromarray(large), "JPEG", quality=95)
    whole = read_picture(data)
    for bound, part in ((368 * 496, 1), (368 * 496 - 1, 2), (184 * 248 - 1, 4), (92 * 124 - 1, 8)):
        monkeypatch.setattr(pictures, "PIXELS", bound)
        read = read_picture(data)
        assert read.shape[:2] == (368 // part, 496 // part) and read.shape[0] * read.shape[1] <= bound
        means = whole.reshape(368 // part, part, 496 // part, part, 3).mean((1, 3))
        assert np.abs(read - means).mean() < 2
        assert picture_size(data) == (368, 496)
    monkeypatch.setattr(pictures, "PIXELS", 1000)
    with pytest.raises(InputError, match="496 x 368 pixels"):
        read_picture(data)
    monkeypatch.setattr(pictures, "PIXELS", 368 * 496 - 1)
    for slow in (encoded(Image.fromarray(large), "JPEG", progressive=True), encoded(Image.fromarray(large), "PNG")):
        with pytest.raises(InputError, match="496 x 368 pixels"):  # libjpeg would hold all coefficients of several scans
            read_picture(slow)
    assert read_picture(encoded(Image.fromarray(large[..., 0]), "JPEG")).shape[:2] == (184, 248)


def test_a_jpeg_of_20_000_by_20_000_is_read_at_a_quarter():
    """With the real bound: the header says so, and libjpeg fills with grey what the one block that follows does not say."""
    data = bytearray(encoded(Image.new("L", (64, 64)), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 20_000, 20_000)
    assert picture_size(bytes(data)) == (20_000, 20_000)
    assert read_picture(bytes(data)).shape == (5_000, 5_000, 3)


def test_one_pixel(tmp_path):
    assert read_picture(encoded(Image.new("RGB", (1, 1), (7, 8, 9)))).tolist() == [[[7, 8, 9]]]
    with pytest.raises(InputError, match="0 x 5 pixels"):
        read_picture(Image.new("RGB", (0, 5)))


# ---- what cannot be read ----


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_no_file_that_breaks_off_or_is_damaged_ends_in_a_traceback(kind, tmp_path):
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)), kind)
    broken = tmp_path / "broken"
    for share in (0.02, 0.3, 0.6, 0.9):
        broken.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(InputError, match=re.escape(str(broken))):
            read_picture(broken)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60):  # any byte may be another; it is read, or refused in words
            other = bytearray(data)
            for at in rng.integers(0, min(len(data), 400), 4):
                other[at] = rng.integers(256)
            with suppress(InputError):
                assert read_picture(bytes(other)).dtype == np.uint8


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "is empty"),
        (b"\0", "no picture"),
        (b"<svg/>", "begins with b'<svg"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (b"\xff\xd8\xff\xe0", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "no picture|damaged"),
    ],
)
def test_what_is_no_picture_is_named(data, found, tmp_path):
    file = tmp_path / "thing.jpg"
    file.write_bytes(data)
    for read in (read_picture, picture_size):
        with pytest.raises(InputError, match=rf"thing\.jpg: .*({found})"):
            read(file)
        with pytest.raises(InputError, match=f"row 7 of a table: .*({found})"):
            read(data, "row 7 of a table")


def test_paths_that_are_no_files(tmp_path):
    for path, found in ((tmp_path / "none.png", "no such file"), (tmp_path, "is a directory"), ("a\0b", "cannot be read")):
        with pytest.raises(InputError, match=found):
            read_picture(path)
    with pytest.raises(InputError, match="a ndarray; expected"):
        read_picture(np.zeros((2, 2, 3), np.uint8))


# ---- DICOM ----


def dicom(values: np.ndarray, **elements):
    """The bytes of a small DICOM file with these pixels."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    bits = values.dtype.itemsize * 8
    data.Rows, data.Columns = values.shape[:2]
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits, bits - 1, int(values.dtype.kind == "i")
    data.SamplesPerPixel, data.PhotometricInterpretation = (3, "RGB") if values.ndim == 3 else (1, "MONOCHROME2")
    if values.ndim == 3:
        data.PlanarConfiguration = 0
    data.PixelData = values.tobytes()
    for key, value in elements.items():
        setattr(data, key, value)
    file = io.BytesIO()
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue(), data


def test_dicom_is_rescaled_and_windowed_as_pydicom_does():
    pixels = pytest.importorskip("pydicom.pixels")
    values = np.arange(-2048, 2048, dtype=np.int16).reshape(64, 64)
    for window in ({}, {"VOILUTFunction": "LINEAR_EXACT"}, {"VOILUTFunction": "SIGMOID"}):
        data, elements = dicom(
            values, RescaleSlope="2", RescaleIntercept="-1000", WindowCenter=["40", "600"], WindowWidth=["401", "9"], **window
        )
        shown = pixels.apply_voi_lut(pixels.apply_modality_lut(values, elements), elements, index=0)
        low, high = -(2**15) * 2 - 1000, (2**15 - 1) * 2 - 1000  # pydicom spreads the window over what the stored bits can hold
        assert np.abs(read_picture(data)[..., 0] - (shown - low) / (high - low) * 255).max() <= 0.51
    # By hand: 4095 steps of which the middle lies at 40.
    data, _ = dicom(values, WindowCenter="40", WindowWidth="401")
    levels = read_picture(data)[..., 0].ravel()
    assert levels[values.ravel() <= 40 - 201].max() == 0 and levels[values.ravel() >= 40 + 200].min() == 255
    inverted, _ = dicom(values, WindowCenter="40", WindowWidth="401", PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(255 - read_picture(inverted), read_picture(data))
    plain, _ = dicom(values[32:] * 8)  # 0 to 16,376, no window
    assert np.abs(read_picture(plain)[..., 1] - values[32:] * 8 / (2047 * 8) * 255).max() <= 0.51


def test_dicom_colours_and_names(colours, tmp_path):
    data, _ = dicom(colours)
    assert np.array_equal(read_picture(data), colours) and picture_size(data) == colours.shape[:2]
    (tmp_path / "a.dcm").write_bytes(data[132:])  # without the mark, by its name
    assert np.array_equal(read_picture(tmp_path / "a.dcm"), colours)


def test_dicom_of_pydicom_itself():
    data = pytest.importorskip("pydicom.data")
    read = {
        name: read_picture(data.get_testdata_file(name, download=False)) for name in ("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm")
    }
    assert read["CT_small.dcm"].shape == (128, 128, 3) and read["CT_small.dcm"].std() > 20
    assert np.array_equal(read["MR_small.dcm"], read["MR_small_RLE.dcm"])
    palette = read_picture(data.get_testdata_file("examples_palette.dcm", download=False))
    assert palette.ndim == 3 and len(np.unique(palette.reshape(-1, 3), axis=0)) > 50


def test_dicom_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    data = pytest.importorskip("pydicom.data")
    for name, found in (("rtplan.dcm", "without a picture"), ("image_dfl.dcm", "deflated"), ("MR_truncated.dcm", "breaks off")):
        with pytest.raises(InputError, match=f"{name}.*{found}"):
            read_picture(data.get_testdata_file(name, download=False))
    (tmp_path / "not.dcm").write_bytes(b"a text")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InputError, match=r"not\.dcm"):
            read_picture(tmp_path / "not.dcm")
    large, _ = dicom(np.zeros((2, 2), np.uint8), Rows=40_000, Columns=40_000)
    with pytest.raises(InputError, match="40,000 x 40,000"):
        read_picture(large)
    monkeypatch.setattr(medical, "BYTES", 100)
    with pytest.raises(InputError, match="bytes are more than"):
        read_picture(large)
