"""highdicom's Volume: coordinate systems and channels."""

from __future__ import annotations

import numpy as np
import pytest
from highdicom import Volume
from highdicom.volume import ChannelDescriptor

import medimg
from medimg.errors import ConversionError, ReadError
from tests.interop.libraries import make_volume

AFFINE = np.diag([2.0, 0.5, 0.25, 1.0])


def test_a_slide_has_a_spacing_and_no_patient() -> None:
    found = medimg.from_highdicom(Volume(np.zeros((1, 5, 6), np.uint8), AFFINE, "SLIDE"))
    assert (found.space, found.spacing) == ("image", (2.0, 0.5, 0.25))
    with pytest.raises(ConversionError, match="no position in one"):
        medimg.to_highdicom(found)


def test_channels_have_the_names_of_their_values() -> None:
    array = np.arange(4 * 5 * 6 * 2).reshape(4, 5, 6, 2)
    volume = Volume(array, AFFINE, "PATIENT", channels={"EchoTime": [1.5, 3.0]})
    found = medimg.from_highdicom(volume)
    assert found.channels == ("1.5", "3.0")
    np.testing.assert_array_equal(found.array, np.moveaxis(array, -1, 0))
    echoes = ChannelDescriptor("gate", is_custom=True, value_type=int)
    two = Volume(array[..., None], AFFINE, "PATIENT", channels={"EchoTime": [1.5, 3.0], echoes: [1]})
    with pytest.raises(ReadError, match="2 dimensions of channels"):
        medimg.from_highdicom(two)


def test_operations_of_highdicom_on_our_volumes() -> None:
    volume = make_volume(channels=2)
    turned = medimg.from_highdicom(medimg.to_highdicom(volume).to_patient_orientation("RAF"))
    wanted = volume.reorient(turned.orientation)
    np.testing.assert_array_equal(turned.array, wanted.array)
    np.testing.assert_allclose(turned.affine, wanted.affine, atol=1e-9)
