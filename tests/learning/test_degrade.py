import numpy as np

from fedveil.learning.degrade import degraded


def images(count=6, channels=1):
    """Nearly the same picture many times; no two have the same pixels."""
    rows, columns = np.mgrid[0:1:32j, 0:1:32j]
    ramp = (rows + columns) / 2
    stack = np.broadcast_to(ramp, (count, channels, 32, 32)).astype(np.float32).copy()
    stack[:, :, 0, 0] += np.arange(count, dtype=np.float32)[:, None] / 1000
    return stack


def test_a_degraded_view_depends_on_the_image_alone():
    """The same to the last bit at every run and in any company: it may be cached by content."""
    stack = images()
    whole = degraded(stack)
    np.testing.assert_array_equal(whole, degraded(stack))
    for row in range(6):
        np.testing.assert_array_equal(whole[row], degraded(stack[row : row + 1])[0])
    np.testing.assert_array_equal(whole[2:5], degraded(stack[2:5]))
    assert not np.allclose(whole[0], whole[1], atol=0.02)


def test_a_degraded_view_is_an_image_and_still_the_same_picture():
    for channels in (1, 3):
        stack = images(40, channels)
        views = degraded(stack)
        assert views.shape == stack.shape
        assert views.dtype == np.float32
        assert views.min() >= 0
        assert views.max() <= 1
        alike = [
            np.corrcoef(view.ravel(), image.ravel())[0, 1] for view, image in zip(views, stack, strict=True)
        ]
        assert min(alike) > 0.8
        assert 0.02 < np.abs(views - stack).mean() < 0.3


def test_no_images_give_no_views():
    assert degraded(images(0)).shape == (0, 1, 32, 32)
