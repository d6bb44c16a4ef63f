from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.wire import virtio_net
from services.wire.virtio_net import NetConfig, NetHeader

U8, U16, U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)


def test_layouts_have_the_sizes_of_the_specification() -> None:
    assert virtio_net.HEADER.size == virtio_net.HEADER_BYTES == 12
    assert virtio_net.CONFIG.size == 24
    end = virtio_net.NUM_BUFFERS_OFFSET + virtio_net.NUM_BUFFERS.size
    assert end == virtio_net.HEADER_BYTES


def test_the_configuration_lies_as_the_specification_says() -> None:
    config = NetConfig(bytes.fromhex("525400123456"), virtio_net.S_LINK_UP, 1, 1500)
    assert virtio_net.CONFIG.pack(*config).hex() == (
        "525400123456" + "0100" + "0100" + "dc05" + "ffffffff" + "ff" + "00" + "0000" + "00000000"
    )


def test_num_buffers_is_the_last_field_of_the_header() -> None:
    packed = bytearray(virtio_net.HEADER.pack(*NetHeader()))
    virtio_net.NUM_BUFFERS.pack_into(packed, virtio_net.NUM_BUFFERS_OFFSET, 3)
    assert NetHeader._make(virtio_net.HEADER.unpack(packed)) == NetHeader(num_buffers=3)


@given(st.builds(NetHeader, U8, U8, U16, U16, U16, U16, U16))
def test_header_round_trip(header: NetHeader) -> None:
    assert NetHeader._make(virtio_net.HEADER.unpack(virtio_net.HEADER.pack(*header))) == header


@given(
    st.builds(NetConfig, st.binary(min_size=6, max_size=6), U16, U16, U16, U32, U8, U8, U16, U32)
)
def test_config_round_trip(config: NetConfig) -> None:
    assert NetConfig._make(virtio_net.CONFIG.unpack(virtio_net.CONFIG.pack(*config))) == config


def test_feature_bits_are_single_and_distinct() -> None:
    masks = [
        value
        for name, value in vars(virtio_net).items()
        if name.startswith("F_") and isinstance(value, int)
    ]
    assert all(mask.bit_count() == 1 for mask in masks)
    assert len(set(masks)) == len(masks)
