"""What every extractor promises, as one contract, and what the names in a study file mean."""

import io
import warnings
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest
import torch

from fedveil.errors import InvalidValue
from fedveil.learning.encoders import EXTRACTORS, feature_extractor

NAMES = [*sorted(EXTRACTORS), "pixels@8+scattering@16", "efficientnet-lite0@32/4+efficientnet-lite0"]


def images(count=3, channels=1, size=32, seed=0):
    return np.random.default_rng(seed).random((count, channels, size, size), dtype=np.float32)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
class TestContract:
    def test_features_have_the_promised_shape(self, name, channels):
        extractor = feature_extractor(name, 32, channels)
        features = extractor(images(channels=channels))
        assert features.shape == (3, extractor.dimension)
        assert features.dtype == np.float32
        assert np.isfinite(features).all()
        assert sum(extractor.blocks) == extractor.dimension
        assert extractor.name == name

    def test_an_image_has_the_same_features_in_any_company(self, name, channels):
        """Features of one patient's image depend on that image alone."""
        extractor = feature_extractor(name, 32, channels)
        stack = images(70, channels)  # more than a batch
        together = extractor(stack)
        np.testing.assert_allclose(extractor(stack[67:68])[0], together[67], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(extractor(stack), together)

    def test_no_images_give_no_features(self, name, channels):
        extractor = feature_extractor(name, 32, channels)
        assert extractor(images(0, channels)).shape == (0, extractor.dimension)

    def test_images_stay_as_they_are(self, name, channels):
        stack = images(channels=channels)
        before = stack.copy()
        feature_extractor(name, 32, channels)(stack)
        np.testing.assert_array_equal(stack, before)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_an_image_that_is_not_finite_counts_as_black_and_leaves_the_others(self, name, channels, value):
        """An error would keep one hospital's whole batch out of every sum."""
        stack = images(channels=channels)
        stack[1] = 0
        extractor = feature_extractor(name, 32, channels)
        expected = extractor(stack)
        stack[1, 0, 3, 3] = value
        np.testing.assert_array_equal(extractor(stack), expected)

    def test_images_of_another_kind_are_refused(self, name, channels):
        extractor = feature_extractor(name, 32, channels)
        for wrong in (
            images(channels=4 - channels),
            images(channels=channels)[0],
            images(channels=channels).astype(np.float64),
        ):
            with pytest.raises(InvalidValue, match="float32"):
                extractor(wrong)


def test_keys_tell_apart_what_differs():
    keys = [
        feature_extractor(name, size, channels).key
        for name in ("pixels@9", "scattering", "scattering@24", "efficientnet-lite0", "pixels@9+scattering")
        for size in (32, 64)
        for channels in (1, 3)
    ]
    # A fixed resolution makes the images' size irrelevant to these two extractors.
    assert len(set(keys)) == len(keys) - 2 * 2
    assert feature_extractor("scattering@32", 64, 1).key == feature_extractor("scattering", 32, 1).key


def test_concatenation_puts_parts_side_by_side():
    stack = images()
    both = feature_extractor("pixels@8+scattering@16", 32, 1)
    parts = [feature_extractor(name, 32, 1) for name in ("pixels@8", "scattering@16")]
    np.testing.assert_array_equal(both(stack), np.concatenate([part(stack) for part in parts], axis=1))
    assert both.blocks == (*parts[0].blocks, *parts[1].blocks)


@pytest.mark.parametrize(
    ("name", "size", "channels"),
    [
        ("resnet", 32, 1),
        ("pixels+", 32, 1),
        ("", 32, 1),
        ("Pixels", 32, 1),
        ("pixels@0", 32, 1),
        ("pixels@", 32, 1),
        ("pixels@5000", 32, 1),
        ("pixels@2000", 32, 1),
        ("efficientnet-lite0", 8, 1),
        ("efficientnet-lite0@8", 64, 1),
        ("scattering", 4, 1),
        ("pixels", 32, 2),
        ("pixels/3", 32, 1),
        ("scattering/3", 32, 1),
        ("efficientnet-lite0/16", 32, 1),
        ("efficientnet-lite2/23", 32, 1),
        ("efficientnet-lite3", 32, 1),
        ("onnx:no.onnx", 32, 1),
        ("pixels", 0, 1),
    ],
)
def test_impossible_extractors_are_refused(name, size, channels):
    with pytest.raises(InvalidValue):
        feature_extractor(name, size, channels)


def test_pixels_are_the_image():
    stack = images(size=8)
    np.testing.assert_allclose(
        feature_extractor("pixels", 8, 1)(stack), stack.reshape(3, -1) - 0.5, rtol=1e-6, atol=1e-7
    )
    coarse = feature_extractor("pixels@1", 8, 1)(np.full((1, 1, 8, 8), 0.25, dtype=np.float32))
    np.testing.assert_allclose(coarse, [[-0.25]], rtol=1e-6)


@pytest.mark.parametrize(
    ("variant", "block", "channels", "size"),
    [
        (0, 10, 1, 32),
        (0, 10, 3, 64),
        (0, 10, 1, 28),
        (0, 4, 1, 32),
        (1, 14, 1, 32),
        (2, 14, 3, 32),
        (2, 20, 1, 32),
    ],
)
def test_folded_network_agrees_with_the_package(variant, block, channels, size):
    """Folding batch norm changes rounding only, against the package's own network as it comes."""
    from efficientnet_lite_pytorch import EfficientNet

    from fedveil.learning.encoders.efficientnet import weights_file
    from fedveil.learning.encoders.efficientnet_lite import LAST_BLOCK

    with redirect_stdout(io.StringIO()):
        network = EfficientNet.from_pretrained(
            f"efficientnet-lite{variant}", weights_path=weights_file(variant), image_size=size
        ).eval()
    stack, outputs = images(2, channels, size), []
    name = f"efficientnet-lite{variant}" + (f"/{block}" if block != LAST_BLOCK[variant] else "")
    network._blocks[block].register_forward_hook(lambda _, inputs, output: outputs.append(output))
    with torch.inference_mode():
        network.extract_features(torch.from_numpy(stack).expand(-1, 3, -1, -1) * (255 / 128) - 127 / 128)
    expected = [outputs[0].mean(dim=(2, 3)), outputs[0].flatten(2).std(dim=2, correction=0)]
    np.testing.assert_allclose(
        feature_extractor(name, size, channels)(stack),
        torch.cat(expected, dim=1).numpy(),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_the_stated_widths_are_those_of_the_networks(variant):
    from efficientnet_lite_pytorch import EfficientNet

    from fedveil.learning.encoders.efficientnet_lite import WIDTHS

    with torch.device("meta"):
        network = EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=64)
    assert WIDTHS[variant] == tuple(block._project_conv.out_channels for block in network._blocks)


@pytest.mark.parametrize("name", ["scattering", "efficientnet-lite0"])
def test_threads_change_nothing_and_are_left_as_they_were(name):
    extractor, stack, before = feature_extractor(name, 32, 1), images(150), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(extractor(stack))
            assert torch.get_num_threads() == threads
        np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_extractors_are_silent():
    from fedveil.learning.encoders import efficientnet

    efficientnet.folded_network.cache_clear()
    with (
        warnings.catch_warnings(),
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        warnings.simplefilter("error")
        for name in EXTRACTORS:
            feature_extractor(name, 32, 1)(images())
    assert out.getvalue() + err.getvalue() == ""
