"""A checkpoint's preprocessing gives what the reference's processors give, from its file, and what we write says the same to them."""

import json
import re

import numpy as np
import pytest

from plait.errors import InputError
from plait.media.preparing import FILTERS, KINDS, Exactly, Preparation, Shortest, Within, padded

Image = pytest.importorskip("PIL.Image")

REFERENCES = {
    "ViTImageProcessor": "vit.image_processing_pil_vit.ViTImageProcessorPil",
    "DeiTImageProcessor": "deit.image_processing_pil_deit.DeiTImageProcessorPil",
    "BitImageProcessor": "bit.image_processing_pil_bit.BitImageProcessorPil",
    "VideoMAEImageProcessor": "videomae.image_processing_pil_videomae.VideoMAEImageProcessorPil",
    "DetrImageProcessor": "detr.image_processing_pil_detr.DetrImageProcessorPil",
    "ConditionalDetrImageProcessor": "conditional_detr.image_processing_pil_conditional_detr.ConditionalDetrImageProcessorPil",
    "DeformableDetrImageProcessor": "deformable_detr.image_processing_pil_deformable_detr.DeformableDetrImageProcessorPil",
}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

# As in the first releases' files, and one of each way to say a size.
FILES = {
    "vit": {"do_normalize": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 96},
    "deit": {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "do_center_crop": True,
        "crop_size": 56,
        "size": 64,
        "resample": 3,
        **IMAGENET,
    },
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 64},
        "crop_size": {"height": 56, "width": 56},
        **IMAGENET,
    },
    "detr, first": {"feature_extractor_type": "DetrFeatureExtractor", "format": "coco_detection", "max_size": 133, "size": 80, **IMAGENET},
    "detr": {"image_processor_type": "DetrImageProcessor", "size": {"shortest_edge": 80, "longest_edge": 133}, "do_pad": True},
    "detr, as large as fits": {"image_processor_type": "DetrImageProcessor", "size": {"max_height": 60, "max_width": 90}},
    "detr, padded": {"image_processor_type": "DetrImageProcessor", "size": {"height": 60, "width": 90}, "do_pad": True, "pad_size": 100},
    "videomae": {
        "image_processor_type": "VideoMAEImageProcessor",
        "size": {"shortest_edge": 60},
        "crop_size": 57,
        "rescale_factor": 0.00392,
    },
    "crop beyond the picture": {
        "image_processor_type": "DeiTImageProcessor",
        "do_resize": False,
        "crop_size": {"height": 131, "width": 96},
    },
    "nothing but pixels": {"do_resize": False, "do_rescale": False, "do_normalize": False},
    "values as they are": {"size": 40, "do_rescale": False, "image_mean": 127.5, "image_std": [60, 61.5, 62]},
    "not normalised": {"size": [40, 50], "do_normalize": False},
    **{f"by {name}": {"image_processor_type": "BitImageProcessor", "resample": n, "size": 48} for n, name in enumerate(FILTERS)},
}


@pytest.fixture(scope="module")
def photographs():
    """Real pictures in usual and odd sizes; skimage's are part of its package."""
    data = pytest.importorskip("skimage.data")
    cat, cup, rocket = data.chelsea(), data.coffee(), data.rocket()  # 300 x 451, 400 x 600, 427 x 640
    tall = np.ascontiguousarray(cat.swapaxes(0, 1)[:, :97])
    return [cat[::2, ::2], tall, cup[100:137, 200:211], rocket[50:58, 60:260], cat[:1, :1], cup[:2, :3]]


def reference(processor: str, raw: dict):
    pytest.importorskip("transformers")
    import importlib

    module, name = REFERENCES[processor].rsplit(".", 1)
    kind = getattr(importlib.import_module(f"transformers.models.{module}"), name)
    return kind(**{key: value for key, value in raw.items() if not key.endswith("_type")})


def theirs(processor: str, raw: dict, pictures):
    """(pixels, mask or None) of the reference, one batch."""
    made = reference(processor, raw)
    if processor.startswith("VideoMAE"):
        return np.stack(
            [made([[one]], return_tensors="np", input_data_format="channels_last")["pixel_values"][0, 0] for one in pictures]
        ), None
    out = made([*pictures], return_tensors="np", input_data_format="channels_last")
    return out["pixel_values"], out.get("pixel_mask")


def assert_alike(made: Preparation, raw: dict, pictures, within: float):
    """Within `within` grey levels of the reference reading `raw`, picture by picture, and in a batch where both make one."""
    level = np.max((made.scale or 1.0) / np.array(made.std or [1.0]))
    worst = 0.0
    for picture in pictures:
        expected, _ = theirs(made.processor, {**raw, "do_pad": False}, [picture])
        got = made.prepared(picture)
        assert got.dtype == np.float32 and got.shape == expected[0].shape
        worst = max(worst, float(np.abs(got - expected[0]).max() / level))
    assert worst <= within
    return worst


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_the_references(name, photographs):
    raw = FILES[name]
    made = Preparation.of(raw)
    assert_alike(made, raw, photographs, within=1e-4)
    # What we write says the same to the reference, to us, and is JSON.
    said = json.loads(json.dumps(made.written()))
    assert Preparation.of(said) == made
    assert_alike(made, said, photographs, within=1e-4)


@pytest.mark.parametrize("kind", REFERENCES)
def test_what_a_file_leaves_out_is_what_the_reference_takes(kind, photographs):
    made = Preparation.of({"image_processor_type": kind})
    assert_alike(made, {}, photographs[1:3], within=1e-4)
    assert Preparation.of({}, processor=kind) == made == Preparation.of({"image_processor_type": kind + "Fast", "size": None})


def test_every_kind_has_a_reference_but_those_that_need_torchvision():
    assert set(KINDS) - set(REFERENCES) == {"VideoMAEVideoProcessor", "TimesformerVideoProcessor"}
    video = pytest.importorskip("transformers.models.timesformer.video_processing_timesformer")
    made = Preparation.of({"video_processor_type": "TimesformerVideoProcessor"})
    assert made.written()["video_processor_type"] == "TimesformerVideoProcessor" and Preparation.of(made.written()) == made
    wanted = video.TimesformerVideoProcessor
    if isinstance(getattr(wanted, "size", None), dict):  # without torchvision the class is a placeholder
        assert made.size == Shortest(wanted.size["shortest_edge"]) and made.mean == tuple(wanted.image_mean)


@pytest.mark.parametrize("name", ["detr", "detr, padded"])
def test_batches_are_padded_and_masked_as_the_reference(name, photographs):
    raw, pictures = FILES[name], [photographs[0], photographs[1], photographs[2]]
    expected, mask = theirs("DetrImageProcessor", raw, pictures)
    pixels, real = Preparation.of(raw).batch(pictures)
    assert real is not None and real.dtype == bool and np.array_equal(real, mask.astype(bool))
    assert pixels.dtype == np.float32 and np.abs(pixels - expected).max() < 1e-5


def test_pictures_of_one_size_need_no_mask_and_clips_are_padded_as_pictures_are(photographs):
    made = Preparation(size=Exactly(8, 6))
    pixels, real = made.batch(photographs)
    assert pixels.shape == (len(photographs), 3, 8, 6) and real is None
    clip = np.stack([photographs[0], photographs[0][::-1]])
    frames = made.prepared(clip)
    assert np.array_equal(frames[1], made.prepared(clip[1]))
    both, real = padded([frames, frames[..., :5, :4]])
    assert both.shape == (2, 2, 3, 8, 6) and not both[1, ..., 5:, :].any() and not both[1, ..., 4:].any()
    assert real is not None and real.sum(axis=(1, 2)).tolist() == [48, 20]


def test_sizes_are_the_references_for_every_shape():
    transforms = pytest.importorskip("transformers.image_transforms")
    utils = pytest.importorskip("transformers.image_utils")
    rng = np.random.default_rng(0)
    for height, width, edge, more in rng.integers(1, 900, (2000, 4)).tolist():
        longest = edge + more
        bounded = transforms.get_size_with_aspect_ratio((height, width), edge, longest)
        assert Shortest(edge, longest).of(height, width) == tuple(max(1, one) for one in bounded)
        free = transforms.get_resize_output_image_size(
            np.empty((3, height, width)), edge, default_to_square=False, input_data_format="channels_first"
        )
        assert Shortest(edge).of(height, width) == free
        inside = utils.get_image_size_for_max_height_width((height, width), edge, more)
        assert Within(edge, more).of(height, width) == tuple(max(1, one) for one in inside)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"crop_pct": 0.9}, "crop_pct"),
        ({"do_sample_frames": True}, "do_sample_frames"),
        ({"data_format": "channels_last"}, "channels_first"),
        ({"size": {"longest_edge": 20}}, "shortest_edge"),
        ({"size": {"height": 20}}, "size"),
        ({"size": -3}, "size"),
        ({"size": "large"}, "size"),
        ({"size": {"height": 10**6, "width": 10**6}}, "size"),
        ({"do_center_crop": True}, "crop_size"),
        ({"resample": 9}, "bicubic"),
        ({"image_std": [1, 1, 0]}, "no zero"),
        ({"image_mean": [0.5]}, "3 numbers"),
        ({"image_mean": [0.5, None, True]}, "3 numbers"),
        ({"rescale_factor": "1/255"}, "a number"),
        ({"do_resize": "yes"}, "true or false"),
        ({"image_processor_type": "SamImageProcessor"}, "SamImageProcessor is not known"),
    ],
)
def test_what_would_change_pixels_and_is_not_known_is_named(raw, found):
    with pytest.raises(InputError, match=re.escape(found)) as caught:
        Preparation.of(raw, where="here.json")
    assert "here.json" in str(caught.value)


def test_all_faults_are_told_at_once_and_switched_off_steps_are_none():
    with pytest.raises(InputError) as caught:
        Preparation.of({"resample": 9, "image_std": 0, "crop_pct": 0.9})
    assert len(caught.value.faults) == 3
    assert Preparation.of({"do_flip_channel_order": False, "crop_pct": None, "do_sample_frames": False}) == Preparation()


def test_wrong_pictures_and_shapes_without_bounds_are_refused(photographs):
    made = Preparation(size=Shortest(224))
    for wrong in (photographs[0] / 255, photographs[0][..., :1], photographs[0][0], photographs[0][:0]):
        with pytest.raises(InputError, match="uint8"):
            made.prepared(wrong)
    with pytest.raises(InputError, match="1 x 60,000 pixels"):
        made.prepared(np.zeros((60_000, 1, 3), np.uint8))
