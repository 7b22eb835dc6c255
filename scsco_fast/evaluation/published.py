"""Published results on iHarmony4's test set at 256x256, as their papers print them, with the protocol of each paper."""

from __future__ import annotations

from typing import NamedTuple

AS_PUBLISHED = "as published"  # the paper's protocol is not known

TEST_PICTURES = {"HAdobe5k": 2160, "HCOCO": 4283, "HFlickr": 828, "Hday2night": 133, "all": 7404}


class Published(NamedTuple):
    """One method's means over `group`; fmse is None where the paper gives none."""

    method: str
    protocol: str
    mse: float
    psnr: float
    fmse: float | None
    group: str = "all"


PUBLISHED = (
    Published("composite", AS_PUBLISHED, 172.47, 31.63, 1387.30),
    Published("DIH", AS_PUBLISHED, 76.77, 33.41, 773.18),
    Published("DoveNet", "dovenet", 52.33, 34.76, 532.62),
    Published("RainNet", "rainnet", 40.29, 36.12, 469.60),
    Published("BargainNet", AS_PUBLISHED, 37.82, 35.88, 405.23),
    Published("D-HT", AS_PUBLISHED, 30.30, 37.55, 320.78),
    Published("iS2AM", "idih", 24.44, 38.19, 264.96),
    Published("Harmonizer", "harmonizer", 24.26, 37.84, None),
    Published("CDTNet", AS_PUBLISHED, 23.75, 38.23, 252.05),
    Published("SCS-Co", AS_PUBLISHED, 21.33, 38.75, 248.86),
    Published("GKNet", AS_PUBLISHED, 19.90, 39.53, None),
    Published("DucoNet", "idih", 18.47, 39.17, 212.53),
    Published("HDNet", "rainnet", 16.55, 40.46, None),
    Published("DiffHarmony", AS_PUBLISHED, 14.29, 40.44, 151.42),
    Published("SCS-Co", AS_PUBLISHED, 21.01, 38.29, 165.48, "HAdobe5k"),
    Published("SCS-Co", AS_PUBLISHED, 13.58, 39.88, 245.54, "HCOCO"),
    Published("SCS-Co", AS_PUBLISHED, 55.83, 34.22, 393.72, "HFlickr"),
    Published("SCS-Co", AS_PUBLISHED, 41.75, 37.83, 606.80, "Hday2night"),
)
