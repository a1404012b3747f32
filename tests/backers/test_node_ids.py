"""Ids of nodes of several volumes."""

from __future__ import annotations

from itertools import product

import pytest

from capstore.backers.node_ids import combined_id


@pytest.mark.parametrize(
    ("node_id", "number", "expected"),
    [
        (0, 0, 0),
        (1, 0, 256),
        (1, 255, 511),
        (2**55 - 1, 255, 2**63 - 1),
        # As b2sum -l 64 has it, with the highest bit set; the second one has it not by itself.
        (2**55, 0, 0x8085C30BF00620D1),
        (2**64 - 1, 1, 0xE731A9177853BA63),
    ],
)
def test_what_an_id_is(node_id: int, number: int, expected: int) -> None:
    assert combined_id(node_id, number) == expected


def test_ids_of_different_nodes_differ() -> None:
    ids = [0, 1, 255, 256, 2**55 - 1, 2**55, 2**56, 2**63, 2**64 - 1]
    combined = {combined_id(*which) for which in product(ids, range(256))}
    assert len(combined) == len(ids) * 256
    assert all(0 <= one < 2**64 for one in combined)
