"""What a checkpoint does to a picture before its first layer: size, crop, range of values; as its preprocessor_config.json says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from plait.errors import InputError, choices
from plait.media.pictures import PIXELS, pillow

# Pillow's numbers of its filters. All but the first look at every pixel that a smaller picture covers (antialias).
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
GREY_LEVEL = 1 / 255

HALF, PHOTOGRAPHS, CLIP = (
    {"image_mean": mean, "image_std": std}
    for mean, std in (
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # of ImageNet's training pictures
        ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),  # of CLIP's
    )
)
SQUARE, EDGE = {"size": 224, "default_to_square": True}, {"size": 224, "default_to_square": False}
BOXES = {"size": {"shortest_edge": 800, "longest_edge": 1333}, "default_to_square": False, "resample": 2, **PHOTOGRAPHS}

# image_processor_type -> what a file that does not say it means; the files of the first releases leave most of it out.
KINDS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {**SQUARE, "resample": 2, **HALF},
    "DeiTImageProcessor": {**SQUARE, "size": 256, "resample": 3, "do_center_crop": True, "crop_size": 224, **HALF},
    "BitImageProcessor": {**EDGE, "resample": 3, "do_center_crop": True, "crop_size": 224, **CLIP},
    "VideoMAEImageProcessor": {**EDGE, "resample": 2, "do_center_crop": True, "crop_size": 224, **HALF},
    "VideoMAEVideoProcessor": {**EDGE, "resample": 2, "do_center_crop": True, "crop_size": 224, **HALF},
    "TimesformerVideoProcessor": {**EDGE, "resample": 2, "do_center_crop": True, "crop_size": 224, **PHOTOGRAPHS},
    "DetrImageProcessor": BOXES,
    "ConditionalDetrImageProcessor": BOXES,
    "DeformableDetrImageProcessor": BOXES,
}
TYPES = ("image_processor_type", "video_processor_type", "feature_extractor_type")
ALWAYS = {"do_resize": True, "do_rescale": True, "rescale_factor": GREY_LEVEL, "do_normalize": True}
READ = {*ALWAYS, *BOXES, "do_center_crop", "crop_size", "do_pad", "pad_size", "max_size", "data_format"}
# They change no pixel: labels and boxes, how arrays are handed over, what a picture in memory is here anyway (RGB).
HARMLESS = {
    *TYPES, "processor_class", "_processor_class", "_valid_processor_keys", "model_input_names", "input_data_format", "return_tensors",
    "device", "disable_grouping", "image_seq_length", "do_convert_rgb", "format", "do_convert_annotations", "pad_and_return_pixel_mask",
    "masks_path", "num_frames", "fps", "video_metadata", "return_metadata",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exactly:
    """Every picture gets this size, whatever its shape."""

    height: int
    width: int

    def of(self, height: int, width: int) -> tuple[int, int]:
        return self.height, self.width


@dataclass(frozen=True, slots=True)
class Shortest:
    """The shorter edge gets this length and the shape stays, unless the longer edge would exceed `longest`: then that one gets it."""

    edge: int
    longest: int | None = None

    def of(self, height: int, width: int) -> tuple[int, int]:
        short, long = min(height, width), max(height, width)
        edge, exact = self.edge, float(self.edge)
        if self.longest is not None and long / short * edge > self.longest:
            exact = self.longest * short / long
            edge = round(exact)
        if short == edge:  # the reference leaves it alone, though the longer edge may then be a pixel beyond the bound
            return height, width
        new = (max(1, edge), max(1, int(exact * long / short)))
        return new if height <= width else (new[1], new[0])


@dataclass(frozen=True, slots=True)
class Within:
    """As large as fits into this frame, in the same shape."""

    height: int
    width: int

    def of(self, height: int, width: int) -> tuple[int, int]:
        scale = min(self.height / height, self.width / width)
        return max(1, int(height * scale)), max(1, int(width * scale))


@dataclass(frozen=True, slots=True)
class Preparation:
    """The steps, in their order; None leaves one out. `processor` is the class that their file names.

    `size` and `crop` (height, width) are of pixels, `crop` from the middle, with black around what is too small. Then values: times
    `scale`, less `mean`, divided by `std` (red, green, blue). `pad` is the least size (height, width) of a batch.
    """

    size: Exactly | Shortest | Within | None = Exactly(224, 224)
    interpolation: str = "bilinear"
    crop: tuple[int, int] | None = None
    scale: float | None = GREY_LEVEL
    mean: tuple[float, ...] | None = HALF["image_mean"]
    std: tuple[float, ...] | None = HALF["image_std"]
    pad: tuple[int, int] | None = None
    processor: str = "ViTImageProcessor"

    @classmethod
    def of(cls, raw: Mapping[str, Any], processor: str = "ViTImageProcessor", where: str = "preprocessor_config.json") -> Self:
        """Of a preprocessor_config.json; `processor` is the kind of one that names none (of ViT's first releases).

        InputError names every key that would change pixels and is not known, and every value that cannot be.
        """
        named = str(next((raw[key] for key in TYPES if raw.get(key)), processor))
        kind = named.removesuffix("Pil").removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
        if kind not in KINDS:
            raise InputError(f"{where}: {named} is not known; expected {choices(KINDS)}")
        given = {key: value for key, value in raw.items() if value is not None}
        read = _Reader({**ALWAYS, **KINDS[kind], **given})
        # A step that is switched off changes nothing, known or not.
        unknown = [key for key in given if key not in READ | HARMLESS and given[key] is not False]
        read.faults += [f"{key}: {given[key]!r}: is not known and may change pixels" for key in unknown]
        if given.get("data_format", "channels_first") != "channels_first":
            read.faults.append(f"data_format: {given['data_format']!r}; expected 'channels_first'")
        normalised = read.switch("do_normalize")
        made = cls(
            size=read.size(kind) if read.switch("do_resize") else None,
            interpolation=read.interpolation(),
            crop=read.two("crop_size") if read.switch("do_center_crop") else None,
            scale=read.numbers("rescale_factor")[0] if read.switch("do_rescale") else None,
            mean=read.numbers("image_mean", 3) if normalised else None,
            std=read.numbers("image_std", 3) if normalised else None,
            pad=read.two("pad_size") if read.switch("do_pad") and "pad_size" in given else None,
            processor=kind,
        )
        if made.std and not all(made.std):
            read.faults.append(f"image_std: {made.std}; expected no zero")
        if read.faults:
            raise InputError(f"{where}: cannot be used", read.faults)
        return made

    def written(self) -> dict[str, Any]:
        """The mapping of a preprocessor_config.json that `of` reads back, with every step in words."""
        said: dict[str, Any] = {
            "video_processor_type" if self.processor.endswith("VideoProcessor") else "image_processor_type": self.processor,
            "do_resize": self.size is not None,
            "resample": FILTERS.index(self.interpolation),
            "do_center_crop": self.crop is not None,
            "do_rescale": self.scale is not None,
            "do_normalize": self.mean is not None,
            "do_pad": self.pad is not None or (self.crop is None and not isinstance(self.size, Exactly)),
        }
        optional = {
            "size": _words(self.size),
            "crop_size": self.crop and {"height": self.crop[0], "width": self.crop[1]},
            "rescale_factor": self.scale,
            "image_mean": self.mean and list(self.mean),
            "image_std": self.std and list(self.std),
            "pad_size": self.pad and {"height": self.pad[0], "width": self.pad[1]},
        }
        return said | {key: value for key, value in optional.items() if value is not None}

    def prepared(self, picture: np.ndarray) -> np.ndarray:
        """float32 [3, h, w] of a picture, np.uint8 [H, W, 3]; [T, 3, h, w] of a clip [T, H, W, 3]."""
        if picture.dtype != np.uint8 or picture.ndim not in (3, 4) or picture.shape[-1] != 3 or not picture.size:
            raise InputError(f"a picture is {picture.dtype} {list(picture.shape)}; expected uint8 [height, width, 3]")
        if picture.ndim == 4:
            return np.stack([self.prepared(frame) for frame in picture])
        if self.size is not None:
            picture = self._resized(picture, *self.size.of(*picture.shape[:2]))
        if self.crop is not None:
            picture = _cropped(picture, *self.crop)
        values = np.tile(np.arange(256, dtype=np.float32), (3, 1))  # [3, 256]: what each grey level becomes
        if self.scale is not None:
            values = (values * np.float64(self.scale)).astype(np.float32)
        if self.mean is not None and self.std is not None:
            values = (values - np.array(self.mean, np.float32)[:, None]) / np.array(self.std, np.float32)[:, None]
        return np.stack([values[channel][picture[..., channel]] for channel in range(3)])

    def batch(self, pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
        """(float32 [B, 3, H, W], bool [B, H, W] of what is no padding or None): pictures as read, prepared and padded to one size."""
        return padded([self.prepared(picture) for picture in pictures], self.pad)

    def _resized(self, picture: np.ndarray, height: int, width: int) -> np.ndarray:
        if height * width > PIXELS:
            given = f"{picture.shape[1]:,} x {picture.shape[0]:,}"
            raise InputError(f"a picture of {given} pixels would be resized to {width:,} x {height:,}; cut it to a less extreme shape")
        if (height, width) == picture.shape[:2]:
            return picture
        image = pillow().fromarray(np.ascontiguousarray(picture))
        return np.asarray(image.resize((width, height), FILTERS.index(self.interpolation)))


def padded(pictures: Sequence[np.ndarray], least: tuple[int, int] | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """(pixels [B, ..., H, W], real [B, H, W]) of pictures [..., h, w]: zeros after each up to the largest size, or `least` (height, width).

    `real` says which pixels are of a picture; it is None where all are.
    """
    sizes = [picture.shape[-2:] for picture in pictures]
    height, width = (max(edges) for edges in zip(*sizes, *([least] if least else [])))
    if all(size == (height, width) for size in sizes):
        return np.stack(pictures), None
    pixels = np.zeros((len(pictures), *pictures[0].shape[:-2], height, width), np.float32)
    real = np.zeros((len(pictures), height, width), bool)
    for row, (picture, (h, w)) in enumerate(zip(pictures, sizes)):
        pixels[row, ..., :h, :w] = picture
        real[row, :h, :w] = True
    return pixels, real


def _cropped(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    if min(top, left) < 0:
        above, before = max(0, -top), max(0, -left)
        picture = np.pad(picture, ((above, above), (before, before), (0, 0)))  # one more below than needed where the rest is odd
    return picture[max(0, top) :, max(0, left) :][:height, :width]


def _words(size: Exactly | Shortest | Within | None) -> dict[str, int] | None:
    if isinstance(size, Shortest):
        return {"shortest_edge": size.edge} | ({} if size.longest is None else {"longest_edge": size.longest})
    if isinstance(size, Within):
        return {"max_height": size.height, "max_width": size.width}
    return None if size is None else {"height": size.height, "width": size.width}


class _Reader:
    """Values of a file that must be of a kind; what is not is noted, and something harmless stands in for it."""

    def __init__(self, raw: Mapping[str, Any]):
        self.raw, self.faults = raw, list[str]()

    def bad(self, key: str, expected: str) -> None:
        self.faults.append(f"{key}: {self.raw.get(key)!r}; expected {expected}")

    def switch(self, key: str) -> bool:
        value = self.raw.get(key, False)
        if not isinstance(value, bool):
            self.bad(key, "true or false")
        return value is True

    def numbers(self, key: str, n: int = 1) -> tuple[float, ...]:
        value = self.raw.get(key)
        values: list[Any] = list(value) if isinstance(value, list | tuple) else [value] * n
        if len(values) != n or not all(_is_number(one) for one in values):
            self.bad(key, "a number" if n == 1 else f"{n} numbers, or one for all")
            return (1.0,) * n
        return tuple(map(float, values))

    def interpolation(self) -> str:
        value = self.raw["resample"]
        if not isinstance(value, int) or value not in range(len(FILTERS)):
            self.bad("resample", ", ".join(f"{number} ({name})" for number, name in enumerate(FILTERS)))
            return FILTERS[0]
        return FILTERS[value]

    def two(self, key: str) -> tuple[int, int]:
        """(height, width), given as an object, as a list or as the edge of a square."""
        value: Any = self.raw.get(key)
        if isinstance(value, Mapping):
            value = [value["height"], value["width"]] if set(value) == {"height", "width"} else None
        edges: list[Any] = list(value) if isinstance(value, list | tuple) and len(value) == 2 else [value, value]
        height, width = edges
        if not _is_edge(height) or not _is_edge(width) or height * width > PIXELS:
            self.bad(key, f"height and width in pixels, at most {PIXELS:,} of them")
            return 1, 1
        return height, width

    def size(self, kind: str) -> Exactly | Shortest | Within:
        value = self.raw["size"]
        if isinstance(value, int) and not self.raw["default_to_square"]:
            value = {"shortest_edge": value}
            if KINDS[kind] is BOXES:  # before sizes were objects, the bound stood beside them
                value["longest_edge"] = self.raw.get("max_size", BOXES["size"]["longest_edge"])
        if not isinstance(value, Mapping) or "height" in value:
            return Exactly(*self.two("size"))
        forms: list[tuple[Callable[..., Exactly | Shortest | Within], tuple[str, ...]]] = [
            (Shortest, ("shortest_edge",)),
            (Shortest, ("shortest_edge", "longest_edge")),
            (Within, ("max_height", "max_width")),
        ]
        for made, keys in forms:
            if set(value) == set(keys) and all(map(_is_edge, value.values())):
                return made(*(value[key] for key in keys))
        self.bad("size", "height and width, shortest_edge (with longest_edge), or max_height and max_width, in pixels")
        return Exactly(1, 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def _is_edge(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= PIXELS
