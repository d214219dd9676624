"""Images made three times as large: trained on 91 images, evaluated on Set5 or Set14.

Yang et al. 2010, Bevilacqua et al. 2012, Zeyde et al. 2010.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
from numpy.typing import NDArray

from qdeploy.core.errors import QDeployError, nearest
from qdeploy.datasets._base import ArrayDataset, CommonOptions, Indices, Raw, Targets
from qdeploy.datasets._download import data_root, ensure_files, reading
from qdeploy.datasets._fetch import fetch

FACTOR = 3
PATCH = 17  # low-resolution pixels of a side, as Shi et al. 2016
CANVAS = {"Set5": (170, 170), "Set14": (218, 256)}  # the low-resolution height and width that hold every image
SUFFIXES = (".bmp", ".png", ".webp")

# The images as they are usually passed on, at one commit of a public repository. What is checked is the sha256 of
# their pixels: they are known in several file formats.
URL = "https://raw.githubusercontent.com/tegg89/SRCNN-Tensorflow/78be1a24697935fc39a3a8cf59a6632264afade7/"
NAMES = {
    "T91": [f"t{i}" for i in range(1, 67) if i != 41] + [f"tt{i}" for i in range(1, 28) if i != 11],
    "Set5": ["baby", "bird", "butterfly", "head", "woman"],
    "Set14": [
        *("baboon", "barbara", "bridge", "coastguard", "comic", "face", "flowers", "foreman", "lenna", "man"),
        *("monarch", "pepper", "ppt3", "zebra"),
    ],
}  # fmt: skip
PLACES = {"T91": "Train/{}.bmp", "Set5": "Test/Set5/{}_GT.bmp", "Set14": "Test/Set14/{}.bmp"}
PIXELS = {
    "T91": "12362896538eca9a6fc49e815c6f5e9802bd0a9b5ccc07a08fc16fdce19cc8ed",
    "Set5": "2d4ab89a5ae961353637a581f56fa728f6a801980e542ba5a508afed54f991bc",
    "Set14": "4c927cec52456ae9bf2613d34f9766a58c5c7bdb407604bd2d0829e6cddb3f9d",
}

Image = NDArray[np.uint8]


class Dataset(ArrayDataset):
    """Raw samples are uint8 [height, width], luminance; the model's input is float32 [1, height, width] in -2..2.

    Targets are float32 [1, 3 * height, 3 * width] in 0..1, NaN where there is no image and within 3 pixels of its edge
    (which papers shave off), so that loss and PSNR count what is there. Luminance is Y of YCbCr (BT.601, 16 to 235);
    the low-resolution image is the high-resolution one shrunk by antialiased bicubic interpolation, in 8 bits.

    Evaluation images (``evaluation``: Set5 or Set14) differ in size: each lies at the top left of a canvas that holds
    all of them, and its last row and column are repeated beside it. Training samples are patches of 17x17 (51x51),
    every ``stride`` low-resolution pixels, of the 91 images shrunk by each of ``scales``; where ``turned``, each patch
    is there eight times, turned and mirrored.

    ``root`` holds sr/T91, sr/Set5 and sr/Set14 with NAME.bmp, .png or .webp.
    """

    name = "super_resolution"
    task = "regression"
    metric = "psnr"
    target_dtype = "float32"
    training_shapes = ((PATCH, PATCH), (1, FACTOR * PATCH, FACTOR * PATCH))

    def __init__(
        self,
        *,
        evaluation: Literal["Set5", "Set14"] = "Set5",
        stride: int = 17,
        scales: Sequence[float] = (1.0,),
        turned: bool = True,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(**common)
        if evaluation not in CANVAS:
            raise QDeployError(f"data.evaluation is {evaluation!r}.", nearest(evaluation, CANVAS))
        if stride < 1:
            raise QDeployError(f"data.stride is {stride}.", "Give low-resolution pixels, 1 or more.")
        if not scales or not all(0 < scale <= 1 for scale in scales):
            raise QDeployError(f"data.scales is {list(scales)}.", "Give factors above 0 and up to 1.")
        self.evaluation = evaluation
        self.stride = stride
        self.scales = [float(scale) for scale in scales]
        self.turned = turned
        height, width = CANVAS[evaluation]
        self.raw_shape = (height, width)
        self.target_shape = (1, FACTOR * height, FACTOR * width)

    @property
    def preprocessing(self) -> list[dict[str, Any]]:
        """Scale to 0..1, centre (training converges several times as fast), add the channel, put it first."""
        return [
            {"op": "scale", "factor": 1 / 255},
            {"op": "normalize", "mean": 0.5, "std": 0.25},
            {"op": "channel"},
            {"op": "layout", "from": "HWC", "to": "CHW"},
        ]

    def _read_training(self) -> tuple[Raw, Targets]:
        low: list[Image] = []
        high: list[Image] = []
        image_of: list[int] = []
        for number, image in enumerate(self._images("T91")):
            for scale in self.scales:
                for small, large in _patches(*_pair(_shrunk(image, scale)), self.stride):
                    low += _directions(small) if self.turned else [small]
                    high += _directions(large) if self.turned else [large]
            image_of += [number] * (len(low) - len(image_of))
        if not low:
            raise QDeployError(
                f"data.scales is {self.scales}: no image is left as large as a patch.", "Give larger factors, up to 1."
            )
        self._image_of = np.array(image_of)
        return np.stack(low), _targets(np.stack(high))

    def _read_evaluation(self) -> tuple[Raw, Targets]:
        images = self._images(self.evaluation)
        height, width = self.raw_shape
        raw, targets = [], np.full((len(images), *self.target_shape), np.nan, np.float32)
        for target, image in zip(targets, images, strict=True):
            low, high = _pair(image)
            raw.append(np.pad(low, ((0, height - low.shape[0]), (0, width - low.shape[1])), mode="edge"))
            target[:, : high.shape[0], : high.shape[1]] = _targets(high[None])[0]
        return np.stack(raw), targets

    def _cut(self, name: str, raw: Raw, targets: Targets) -> tuple[Raw, Targets]:
        rows, _ = super()._cut(name, np.arange(len(raw)), targets)
        if name == "training":
            self._image_of = self._image_of[rows]
        return raw[rows], targets[rows]

    def _hold_out(self, targets: Targets, share: float, seed: int) -> tuple[Indices, Indices]:
        """Whole images are held out: patches of one image overlap, and eight of them are one patch turned."""
        images = np.random.default_rng([seed, 0]).permutation(len(NAMES["T91"]))
        out = np.isin(self._image_of, images[: max(round(len(images) * share), 1)])
        return np.flatnonzero(~out), np.flatnonzero(out)

    def _files(self, part: str) -> list[Path]:
        folder = data_root(self.root) / "sr" / part
        candidates = [[folder / f"{name}{suffix}" for suffix in SUFFIXES] for name in NAMES[part]]
        return [next((file for file in files if file.is_file()), files[0]) for files in candidates]

    def _ensure(self, part: str) -> list[Path]:
        def download() -> None:
            for name, file in zip(NAMES[part], self._files(part), strict=True):
                if not file.is_file():
                    fetch(URL + PLACES[part].format(name), file)

        ensure_files(self.name, self._files(part), self.download, download)
        return self._files(part)

    def _images(self, part: str) -> list[Image]:
        """The luminance of all images of ``part``, uint8 [height, width] each, in the order of NAMES."""
        from PIL import Image as Pillow

        files, images, digest = self._ensure(part), [], hashlib.sha256()
        with reading(self.name, files[0].parent):
            for file in files:
                with Pillow.open(file) as opened:
                    pixels = np.asarray(opened.convert("RGB"))
                digest.update(f"{file.stem}{pixels.shape}".encode() + pixels.tobytes())
                images.append(_luminance(pixels))
            if digest.hexdigest() != PIXELS[part]:
                raise ValueError(f"the pixels of {part} are not the known ones")
        return images

    def _options(self) -> dict[str, Any]:
        return {**super()._options(), "images": [self.evaluation, self.stride, self.scales, self.turned]}

    def _content(self) -> Iterable[bytes]:
        return (file.read_bytes() for part in ("T91", self.evaluation) for file in self._ensure(part))


def _luminance(pixels: Image) -> Image:
    """Y of YCbCr, 16 to 235, of RGB [height, width, 3] (ITU-R BT.601), rounded to 8 bits."""
    luminance: Image = np.rint(16 + pixels @ np.array([65.481, 128.553, 24.966]) / 255).astype(np.uint8)
    return luminance


def _resized(image: Image, height: int, width: int) -> Image:
    """Bicubic (a = -0.5), antialiased, in 8 bits."""
    from PIL import Image as Pillow

    return np.asarray(Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BICUBIC))


def _shrunk(image: Image, scale: float) -> Image:
    return image if scale == 1 else _resized(image, *(max(int(side * scale), FACTOR) for side in image.shape))


def _pair(image: Image) -> tuple[Image, Image]:
    """The low-resolution image, and the high-resolution one cut to a multiple of FACTOR."""
    height, width = (side // FACTOR for side in image.shape)
    high = image[: FACTOR * height, : FACTOR * width]
    return _resized(high, height, width), high


def _patches(low: Image, high: Image, stride: int) -> Iterator[tuple[Image, Image]]:
    size = FACTOR * PATCH
    for top in range(0, low.shape[0] - PATCH + 1, stride):
        for left in range(0, low.shape[1] - PATCH + 1, stride):
            y, x = FACTOR * top, FACTOR * left
            yield low[top : top + PATCH, left : left + PATCH], high[y : y + size, x : x + size]


def _directions(patch: Image) -> list[Image]:
    """A square patch turned by 0, 90, 180 and 270 degrees, each as it is and mirrored."""
    return [np.rot90(image, turns) for image in (patch, patch[:, ::-1]) for turns in range(4)]


def _targets(high: Image) -> Targets:
    """[N, height, width] -> float32 [N, 1, height, width] in 0..1, NaN within FACTOR pixels of the edge.

    The edge of a patch meets the padding of convolutions where a whole image has pixels: nothing is learned there.
    """
    made = np.full((len(high), 1, *high.shape[1:]), np.nan, np.float32)
    inner = slice(FACTOR, -FACTOR)
    made[:, 0, inner, inner] = high[:, inner, inner] * np.float32(1 / 255)
    return made
