import io

import numpy as np
from PIL import Image

from saekit.report.circuit.mosaic import colour_map, max_pool, mosaic, png, pool_size, single_map

BLUE, RED = (10, 20, 200), (200, 20, 10)


def decoded(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGBA"))


def test_png_is_read_back_by_another_library():
    rgba = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    np.testing.assert_array_equal(decoded(png(rgba)), rgba)


def test_query_goes_up_and_key_to_the_right():
    """Mutation tried: without the reversal of the query axis this fails."""
    weights = np.zeros((3, 3))
    weights[2, 0] = 1.0  # last query, first key: top left
    image = colour_map(weights, None, BLUE, RED)
    assert image[0, 0].tolist() == [*BLUE, 255]
    assert image[2, 0, 3] == 0


def test_the_chosen_cell_is_red_even_with_no_weight():
    image = colour_map(np.zeros((3, 3)), (2, 1), BLUE, RED)
    assert image[0, 1, :3].tolist() == list(RED)
    assert image[0, 1, 3] == round(255 * 0.35)


def test_max_pool_by_hand():
    maps = np.arange(9).reshape(3, 3)
    assert max_pool(maps, 2).tolist() == [[4, 5], [7, 8]]
    assert [pool_size(n) for n in (1, 32, 33, 64, 65)] == [1, 1, 2, 2, 3]


def test_layers_go_up_and_heads_to_the_right():
    patterns = np.zeros((2, 3, 1, 1))
    patterns[1, 2] = 1.0
    image, block = mosaic(patterns.tolist(), None, BLUE, RED)
    pixels = decoded(image)
    assert block == 1
    top_right = pixels[10, -10]
    assert top_right.tolist() == [*BLUE, 255]
    assert pixels[-10, -10, 3] == 0


def test_a_single_map_is_enlarged_without_blur():
    pixels = decoded(single_map([[1.0, 0.0], [0.5, 0.5]], (1, 0), BLUE, RED))
    assert {tuple(pixel) for row in pixels for pixel in row} == {
        (*BLUE, 255), (*BLUE, 0), (*RED, round(255 * (0.35 + 0.65 * 0.5))), (*BLUE, 128),
    }  # fmt: skip
