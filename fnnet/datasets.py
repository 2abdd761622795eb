"""Data sets as (images, labels) pairs: MNIST, whole or the small part that the package carries.

Images are float32 (m, 28, 28, 1) from 0 (background) to 1 (ink), labels int32 (m,) from 0 to 9.

MNIST: Yann LeCun, Corinna Cortes, Christopher J. C. Burges; Creative Commons Attribution-ShareAlike 3.0.
"""

import gzip
import hashlib
import io
import math
import os
import struct
import zlib
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .files import replacing

__all__ = ["Dataset", "download_mnist", "jitter", "mnist", "mnist_subset", "read_idx", "shifted"]

Pair = tuple[np.ndarray, np.ndarray]

FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
LARGEST = 47_040_016  # bytes of the first, the largest
MIRROR = "https://storage.googleapis.com/cvdf-datasets/mnist/"
INFLATION = 1032  # the most that a byte of deflate's can stand for
SUBSET = Path(__file__).parent / "data"


class Dataset(NamedTuple):
    """Three (images, labels) pairs; ``fit`` takes each as it is."""

    train: Pair
    validation: Pair
    test: Pair


def mnist_subset(validation: int = 1000) -> Dataset:
    """The first 5,000 training and 1,000 test images of MNIST, which the package carries; needs no network.

    Args:
        validation: how many of the 5,000, the last ones, are held back for validation.

    Raises:
        ValueError: for a number outside 0 .. 4999.
    """
    return _split(SUBSET, validation)


def mnist(folder: str | os.PathLike[str] | None = None, validation: int = 10_000) -> Dataset:
    """The whole of MNIST: 60,000 training images (the last ``validation`` held back) and 10,000 test images.

    Args:
        folder: where the four IDX files are, plain or gzipped, named train-images-idx3-ubyte or train-images.idx3-ubyte; or
            torchvision's root, which has them in MNIST/raw. By default the environment's FNNET_DATA.
        validation: how many of the training images are held back.

    Raises:
        FileNotFoundError: where a file is missing.
        ValueError: for a damaged file, files that do not belong together, or ``validation`` outside 0 .. 59,999.
    """
    folder = os.environ.get("FNNET_DATA") if folder is None else folder
    if not folder:
        raise FileNotFoundError(
            "mnist: expected a folder with MNIST's four IDX files, got none; give mnist(folder), set FNNET_DATA, fetch them "
            "with fn.datasets.download_mnist(folder), or use fn.datasets.mnist_subset()"
        )
    return _split(Path(os.path.expanduser(folder)), validation)


def download_mnist(folder: str | os.PathLike[str], mirror: str = MIRROR) -> Path:
    """Fetch MNIST's four files (11 MB) into a folder, checking their SHA-256; files already there are kept.

    Raises:
        ValueError: for a file with another checksum: fetched, it is not written; already there, it is not touched.
        OSError: where the mirror or the folder cannot be reached.
    """
    from urllib.request import urlopen  # slow to import, and only needed here

    folder = Path(os.path.expanduser(folder))
    folder.mkdir(parents=True, exist_ok=True)
    for name, checksum in FILES.items():
        target = folder / f"{name}.gz"
        if target.exists():
            content, remedy = target.read_bytes(), f"move {target} away and fetch it again"
        else:
            with urlopen(f"{mirror}{name}.gz", timeout=60) as reply:
                content, remedy = reply.read(LARGEST), "try another mirror"
        if (found := _checksum(content)) != checksum:
            raise ValueError(f"download_mnist: expected {name} with SHA-256 {checksum}, got {found}; {remedy}")
        if not target.exists():
            with replacing("download_mnist", target) as file:
                file.write(content)
    return folder


def _checksum(content: bytes) -> str:
    """SHA-256 of what is compressed, or why there is none."""
    try:
        with gzip.open(io.BytesIO(content)) as file:
            return hashlib.sha256(file.read(LARGEST + 1)).hexdigest()
    except (OSError, EOFError, zlib.error) as error:
        return f"no gzip file ({error})"


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, plain or gzipped.

    The format: two zero bytes, the type (8: unsigned byte), the number of axes, their sizes as big-endian 32-bit integers,
    then the entries. Sizes that the file cannot hold are refused before it is read, and no more than they say is unpacked.

    Raises:
        ValueError: for a file that is damaged, truncated or of another format.
        FileNotFoundError: where there is no file.
    """
    path = Path(os.path.expanduser(path))
    try:
        if path.exists() and not path.is_file():
            raise ValueError("no regular file")
        with open(path, "rb") as plain:
            packed, room = plain.read(2) == b"\x1f\x8b", os.fstat(plain.fileno()).st_size
            plain.seek(0)
            file, room = (gzip.GzipFile(fileobj=plain), INFLATION * room) if packed else (plain, room)
            zero, kind, axes = struct.unpack(">HBB", start := file.read(4))
            if (zero, kind) != (0, 8):
                raise ValueError(f"its first bytes are {start!r}")
            shape = struct.unpack(f">{axes}I", file.read(4 * axes))
            if math.prod(shape) > room:
                raise ValueError(f"it is too small for the shape {shape}")
            entries = file.read(math.prod(shape) + 1)
        if len(entries) != math.prod(shape):
            held = len(entries) if len(entries) < math.prod(shape) else "more"
            raise ValueError(f"it holds {held} bytes for the shape {shape}")
        return np.frombuffer(entries, np.uint8).reshape(shape)
    except (FileNotFoundError, PermissionError):
        raise
    except (ValueError, OSError, EOFError, struct.error, zlib.error) as error:
        raise ValueError(
            f"read_idx: expected an IDX file of unsigned bytes, got {path} ({error}); fetch it again"
        ) from error


def shifted(images: Any, labels: Any) -> Pair:
    """Five times as many examples: the images as they are, then moved by one pixel up, down, left and right.

    The row or column that becomes free is 0.

    Args:
        images: (m, H, W, c).
        labels: (m, ...).

    Returns:
        (5m, H, W, c) and (5m, ...).

    Raises:
        ValueError: for images of another rank, or another number of labels.

    Source: Nielsen, Neural Networks and Deep Learning, chapter 6: 250,000 images from 50,000.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    _check_images("shifted", images)
    if labels.shape[:1] != images.shape[:1]:
        raise ValueError(f"shifted: expected {len(images)} labels, one for each image, got shape {labels.shape}")
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = images.shape[1:3]
    corners = ((1, 1), (2, 1), (0, 1), (1, 2), (1, 0))
    moved = [padded[:, top : top + height, left : left + width] for top, left in corners]
    return np.concatenate(moved), np.concatenate([labels] * len(corners))


def jitter(key: Array, images: Any, *, degrees: float = 10.0, pixels: float = 1.0) -> Array:
    """Each image turned about its centre and moved, by its own draw; what comes in from outside is 0.

    Args:
        key: the draws come from it alone.
        images: (m, H, W, c).
        degrees: angles are uniform in ±degrees, counted counter-clockwise.
        pixels: movements along each axis are uniform in ±pixels; interpolation is linear.

    Returns:
        Images of the same shape and dtype (float32 for integers), compiled; new ones for a new key.

    Raises:
        ValueError: for images of another rank.
    """
    images = jnp.asarray(images)
    _check_images("jitter", images)
    return _jitter(key, images, degrees, pixels)


@jax.jit
def _jitter(key: Array, images: Array, degrees: Any, pixels: Any) -> Array:
    dtype = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.dtype(jnp.float32)
    m, height, width, _ = images.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2], dtype)
    places = (
        jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1).astype(dtype)
        - centre[None, None, :]
    )
    draws = jax.random.uniform(key, (m, 3), jnp.float32, -1, 1).astype(dtype)
    angles, moves = draws[:, 0] * jnp.asarray(np.pi / 180, dtype) * degrees, draws[:, 1:] * pixels

    def one(image: Array, angle: Array, move: Array) -> Array:
        """Each pixel's value is read where the inverse movement puts it."""
        y, x = jnp.moveaxis(places - move[None, None, :], -1, 0)
        back = jnp.stack([jnp.cos(angle) * y + jnp.sin(angle) * x, jnp.cos(angle) * x - jnp.sin(angle) * y])
        at = back + centre[:, None, None]
        read = lambda channel: jax.scipy.ndimage.map_coordinates(channel, list(at), order=1)  # noqa: E731
        return jax.vmap(read, -1, -1)(image)

    return jax.vmap(one)(images.astype(dtype), angles, moves)


def _check_images(name: str, images: Any) -> None:
    if images.ndim != 4:
        raise ValueError(
            f"{name}: expected images (m, H, W, c), got shape {images.shape}; add axes with [None] or [..., None]"
        )


def _split(folder: Path, validation: int) -> Dataset:
    train, test = _pair(folder, "train"), _pair(folder, "t10k")
    n = len(train[0])
    if not isinstance(validation, Integral) or not 0 <= validation < n:
        raise ValueError(
            f"mnist: expected validation from 0 to {n - 1} of the {n} training images, got {validation}; "
            f"it is how many are held back"
        )
    n -= int(validation)
    return Dataset((train[0][:n], train[1][:n]), (train[0][n:], train[1][n:]), test)


def _pair(folder: Path, part: str) -> Pair:
    images, labels = (read_idx(_find(folder, name)) for name in FILES if name.startswith(part))
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"mnist: expected images (m, 28, 28) and as many labels, got {images.shape} and {labels.shape} in {folder}; "
            f"take both files from one data set"
        )
    if labels.size and labels.max() > 9:
        raise ValueError(
            f"mnist: expected labels from 0 to 9, got {labels.max()} in {folder}; read others with read_idx"
        )
    return (images / np.float32(255))[..., None], labels.astype(np.int32)


def _find(folder: Path, name: str) -> Path:
    """The file of that name, with a dash or (as in the archive) a dot before idx, in the folder or in torchvision's."""
    for place in (folder, folder / "MNIST" / "raw", folder / "raw"):
        for stem in (name, name.replace("-idx", ".idx")):
            for path in (place / stem, place / f"{stem}.gz"):
                if path.is_file():
                    return path
    got = "neither" if folder.is_dir() else "no such folder"
    raise FileNotFoundError(
        f"mnist: expected {name} or {name}.gz (or {name.replace('-idx', '.idx')}) in {folder} or its MNIST/raw, got {got}; "
        f"fn.datasets.download_mnist(folder) fetches it"
    )
