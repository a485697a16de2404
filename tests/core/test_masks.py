"""The counter-based generator and the masks made from it, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lstmcore.config import LSTMConfig, StackConfig
from lstmcore.masks import (
    BatchRows,
    Kind,
    MaskDraw,
    bernoulli,
    draw_on_host,
    layer_masks,
    philox4x32,
    random_words,
    stack_masks,
    stream,
)
from lstmcore.precision import PRECISIONS

F32, F64 = PRECISIONS["float32"], PRECISIONS["float64"]


def dropout_mask(
    seed: int, number: int, shape: tuple[int, ...], rate: float, dtype: str = "float32", step: int = 0
) -> Any:
    """Return a mask of 0 with probability `rate`, else 1 / (1 - rate)."""
    return draw_on_host(MaskDraw(seed, number, step, shape, dtype, rate, (0.0, 1 / (1 - rate))))


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    """The entries for philox4x32 with 10 rounds of ``kat_vectors`` in the Random123 distribution of the authors."""
    key0, key1 = words(key)
    found = philox4x32(np.array(words(counter), np.uint32), (key0, key1))
    assert found.tolist() == words(expected)
    assert found.dtype == np.uint32


def in_plain_python(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 as the article writes it, on whole numbers."""
    low = 2**32 - 1
    for _ in range(10):
        product0, product1 = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [
            (product1 >> 32) ^ counter[1] ^ key[0],
            product1 & low,
            (product0 >> 32) ^ counter[3] ^ key[1],
            product0 & low,
        ]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return counter


def test_words_are_laid_out_as_the_specification_says() -> None:
    seed, number, step = 0x0123456789ABCDEF, 4 * 3 + 2, 77
    expected: list[int] = []
    for block in range(4):
        expected += in_plain_python([block, 0, step, number], [0x89ABCDEF, 0x01234567])
    assert random_words(seed, number, step, 14).tolist() == expected[:14]
    assert random_words(seed, number, step, 0).shape == (0,)


def test_more_words_begin_with_the_same_ones() -> None:
    np.testing.assert_array_equal(random_words(1, 2, 3, 10), random_words(1, 2, 3, 99)[:10])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((-1, 0, 0), "seed"),
        ((2**64, 0, 0), "seed"),
        ((0, 2**32, 0), "stream"),
        ((0, 0, -1), "step"),
        ((0, 0, 2**32), "step"),
    ],
)
def test_out_of_range(arguments: tuple[int, int, int], name: str) -> None:
    for call in (lambda: random_words(*arguments, 4), lambda: MaskDraw(*arguments, (2, 3), "float32", 0.5, (0.0, 1.0))):
        with pytest.raises(ValueError, match=rf"^{name}: expected 0 to 2\*\*"):
            call()


def test_edges_of_the_ranges() -> None:
    assert random_words(2**64 - 1, 2**32 - 1, 2**32 - 1, 4).tolist() == in_plain_python(
        [0, 0, 2**32 - 1, 2**32 - 1], [2**32 - 1, 2**32 - 1]
    )


def test_bernoulli_compares_a_word_with_the_rate() -> None:
    drawn = bernoulli(9, 8, 7, (3, 5), 0.3)
    limit = int(0.3 * 2**32)
    assert drawn.tolist() == (random_words(9, 8, 7, 15) < limit).reshape(3, 5).tolist()
    assert not bernoulli(9, 8, 7, (3, 5), 0.0).any()
    assert bernoulli(9, 8, 7, (3, 5), 1.0).all()
    assert bernoulli(9, 8, 7, (0, 5), 0.5).shape == (0, 5)


@pytest.mark.parametrize("rate", [0.05, 0.25, 0.5, 0.9])
def test_dropout_statistics(rate: float) -> None:
    """Shares within five standard errors, in all and for every word of a block."""
    mask = dropout_mask(3, 0, (100, 25, 16), rate, "float64")
    assert set(np.unique(mask).tolist()) == {0.0, 1 / (1 - rate)}
    dropped = mask == 0
    for share in (dropped, *(dropped.reshape(-1, 4)[:, lane] for lane in range(4))):
        assert abs(share.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / share.size)
    centred = dropped - rate
    for axis in range(3):  # neighbours are uncorrelated
        pairs = np.moveaxis(centred, axis, 0)
        products = pairs[1:] * pairs[:-1]
        assert abs(products.mean()) < 5 * rate * (1 - rate) / np.sqrt(products.size)


def test_frozen_masks() -> None:
    """The bits themselves: seed 1, first layer, first recorded call."""
    mask = dropout_mask(1, stream(0, Kind.DROPOUT), (2, 8), 0.5)
    assert mask.dtype == np.float32
    drawn = in_plain_python([0, 0, 0, 0], [1, 0]) + in_plain_python([1, 0, 0, 0], [1, 0])
    assert (mask[0] == 0).tolist() == [word < 2**31 for word in drawn]


def test_streams_do_not_meet() -> None:
    used = {stream(index, kind) for index in range(50) for kind in Kind}
    assert len(used) == 200
    assert max(used) < 2**31  # from there on are those of the parameters


SWITCHES: dict[str, Any] = {
    "input_size": 4,
    "hidden_size": 3,
    "recurrent_dropout": 0.25,
    "zoneout_hidden": 0.2,
    "zoneout_cell": 0.3,
}


def test_layer_masks() -> None:
    config = LSTMConfig(**SWITCHES, proj_size=2)
    masks = layer_masks(config, F32, 5, 2, seed=1, index=6, step=9)
    drawn = bernoulli(1, 4 * 6 + 1, 9, (2, 2), 0.25)
    np.testing.assert_array_equal(masks.recurrent, np.where(drawn, 0, 4 / 3).astype(np.float32))
    np.testing.assert_array_equal(masks.zoneout_hidden, bernoulli(1, 4 * 6 + 2, 9, (5, 2, 2), 0.2))
    np.testing.assert_array_equal(masks.zoneout_cell, bernoulli(1, 4 * 6 + 3, 9, (5, 2, 3), 0.3))
    assert {str(mask.dtype) for mask in masks if mask is not None} == {"float32"}
    cell = layer_masks(LSTMConfig(**SWITCHES, proj_size=2, recurrence="cell"), F32, 5, 2, seed=1, index=0, step=0)
    assert cell.recurrent is not None
    assert cell.recurrent.shape == (2, 3)


def test_stack_masks() -> None:
    config = LSTMConfig(**SWITCHES)
    stack = StackConfig.make(config, num_layers=3, bidirectional=True, dropout=0.4)
    masks = stack_masks(stack, PRECISIONS["float16"], 5, 2, seed=1, step=9)
    assert masks is not None
    assert len(masks.layers) == 6
    assert len(masks.dropout) == 2
    for layer, mask in enumerate(masks.dropout):
        np.testing.assert_array_equal(mask, dropout_mask(1, 4 * layer, (5, 2, 6), 0.4, step=9))
    for index, found in enumerate(masks.layers):
        wanted = layer_masks(stack.configs[index], F32, 5, 2, seed=1, index=index, step=9)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, other)


def test_masks_that_no_rate_asks_for_are_none() -> None:
    plain = LSTMConfig(input_size=4, hidden_size=3)
    assert stack_masks(StackConfig.make(plain), F64, 5, 2, seed=0, step=0) is None
    assert stack_masks(StackConfig.make(plain, dropout=0.5), F64, 5, 2, seed=0, step=0) is None  # one layer
    some = stack_masks(StackConfig.make(plain, num_layers=2, dropout=0.5), F64, 5, 2, seed=0, step=0)
    assert some is not None
    assert len(some.dropout) == 1
    assert all(mask is None for layer in some.layers for mask in layer)


def test_precisions_draw_the_same_masks() -> None:
    stack = StackConfig.make(LSTMConfig(**SWITCHES), num_layers=2, dropout=0.5)
    one, other = (stack_masks(stack, precision, 5, 2, seed=0, step=0) for precision in (F32, F64))
    assert one is not None
    assert other is not None
    for left, right in zip(one.layers, other.layers, strict=True):
        for a, b in zip(left, right, strict=True):
            np.testing.assert_array_equal(a == 0, b == 0)


def test_each_mask_is_drawn_by_the_function_that_is_given() -> None:
    """A backend draws on its device: it is told all that fixes a mask, and nothing is drawn besides."""
    stack = StackConfig.make(LSTMConfig(**SWITCHES), num_layers=2, bidirectional=True, dropout=0.4)
    rows, told = BatchRows(np.array([0, 2, 3, 6]), 7), list[MaskDraw]()

    def draw(mask: MaskDraw) -> Any:
        told.append(mask)
        return draw_on_host(mask)

    options: Any = {"seed": 2**40 + 3, "step": 2**31, "rows": rows}
    found, wanted = stack_masks(stack, F64, 5, 4, **options, draw=draw), stack_masks(stack, F64, 5, 4, **options)
    assert found is not None and wanted is not None
    assert len(told) == 4 * 3 + 1 == len({mask.stream for mask in told})
    assert {(mask.seed, mask.step, mask.dtype) for mask in told} == {(2**40 + 3, 2**31, "float64")}
    assert all(mask.rows is rows for mask in told)
    for one, other in zip((*found.layers, found.dropout), (*wanted.layers, wanted.dropout), strict=True):
        for own, mask in zip(one, other, strict=True):
            np.testing.assert_array_equal(own, mask)
