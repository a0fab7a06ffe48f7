"""DICOM pictures (PS3.3, section C.11.2: the window that a radiologist sees), through pydicom."""

import io
from typing import IO, Any

import numpy as np

from plait.errors import InputError
from plait.media.pictures import check_size, decoding, windowed

BYTES = 2**30  # of one file: pydicom holds it whole
DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax that is unpacked whole before its size is known
HEADER = 4096  # bytes in which the transfer syntax stands


def read_dicom(stream: IO[bytes], name: str) -> np.ndarray:
    """np.uint8 [H, W, 3] of a DICOM file; of several frames the first.

    Grey values go through the modality's rescaling (or its table) and the file's first window (LINEAR, LINEAR_EXACT or SIGMOID);
    without one `pictures.windowed` says the range. MONOCHROME1 is inverted, so that more is brighter. Palettes and YBR become RGB;
    tables in place of a window (VOI LUT Sequence) and overlays are not applied.
    """
    data = _dataset(stream, name)
    with decoding(name):
        from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

        values, kind = pixel_array(data, index=0), data.PhotometricInterpretation
        if kind == "PALETTE COLOR":
            values = apply_color_lut(values, data)
            return windowed(values, 0, np.iinfo(values.dtype).max)
        if values.ndim == 3:
            return windowed(values, 0, 2**data.BitsStored - 1)
        levels = _shown(apply_modality_lut(values, data), data)
        return np.repeat((255 - levels if kind == "MONOCHROME1" else levels)[..., None], 3, axis=-1)


def dicom_size(stream: IO[bytes], name: str) -> tuple[int, int]:
    """(height, width) of a DICOM file's pictures."""
    data = _dataset(stream, name, stop_before_pixels=True)
    return int(data.Rows), int(data.Columns)


def _dataset(stream: IO[bytes], name: str, **options: Any) -> Any:
    try:
        import pydicom
    except ImportError:
        raise InputError(f"{name}: DICOM files need pydicom: pip install 'plait[medical]'") from None
    if stream.seek(0, io.SEEK_END) > BYTES:
        raise InputError(f"{name}: {stream.tell():,} bytes are more than can be read ({BYTES:,}): split it into its frames")
    stream.seek(0)
    if DEFLATED in stream.read(HEADER):
        raise InputError(f"{name}: its data set is deflated; store it in another transfer syntax")
    stream.seek(0)
    with decoding(name):
        data = pydicom.dcmread(stream, force=True, **options)  # force: older files lack the mark, and were taken by their name
        if not data:
            raise InputError(f"{name}: is no DICOM file: no element of one was found")
        if "Rows" not in data or "Columns" not in data:
            raise InputError(f"{name}: a DICOM file without a picture (modality {data.get('Modality') or 'unknown'})")
        check_size(int(data.Rows), int(data.Columns), name)
    return data


def _shown(values: np.ndarray, data: Any) -> np.ndarray:
    """uint8 [H, W] of rescaled values in the file's window."""
    centre, width = (_first(data.get(key)) for key in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width <= 0:
        return windowed(values)
    function = data.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":  # C.11.2.1.3.1
        with np.errstate(over="ignore"):
            return windowed(1 / (1 + np.exp(-4 * (np.asarray(values, np.float64) - centre) / width)), 0, 1)
    if function == "LINEAR":  # C.11.2.1.2.1: counts in whole steps
        centre, width = centre - 0.5, width - 1
    return windowed(values, centre - width / 2, centre + width / 2)


def _first(value: Any) -> float | None:
    """A value of several that a file may give, as windows for bone and for tissue."""
    if value is not None and not isinstance(value, float | int | str):
        value = value[0] if len(value) else None
    return None if value is None or value == "" else float(value)
