"""The colour constants of transfer_color's kernels against the project's."""

from scsco_fast.kernels.transfer_color import color, forward
from scsco_fast.reference import color as reference_color
from scsco_fast.reference import transfer_color as reference


def test_the_constants_are_the_project_s() -> None:
    """kernels/ imports nothing of the project, so its numbers stand there a second time."""
    assert color.RGB_TO_XYZ == reference_color.RGB_TO_XYZ
    assert color.RGB_TO_YCBCR == reference_color.RGB_TO_YCBCR
    assert (color.WHITE_X.value, 1.0, color.WHITE_Z.value) == reference_color.WHITE
    assert (color.EPSILON.value, color.KAPPA.value) == (reference_color.EPSILON, reference_color.KAPPA)
    assert color.CHROMA.value == reference_color.GREY
    assert forward.LAB_FLOOR.value == reference.LAB_FLOOR
    assert forward.RGB_RIDGE.value == reference.RGB_RIDGE
    assert forward.BINS.value == reference.BINS
