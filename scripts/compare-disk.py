"""Compares the files of an image with those of a container that it was built in.

compare-disk.py LAYOUT DISK.tar: every file of the image must be on the disk as it is in
the image; what the disk has besides must be the container's own. Prints what differs."""

import hashlib
import json
import pathlib
import sys
import tarfile

layout, disk = pathlib.Path(sys.argv[1]), sys.argv[2]
# Made or mounted by the engine, or named after the container.
OWN = {"etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab", ".dockerenv"}
LEFT_OUT = ("proc", "sys", "dev", "kaniko", "busybox", "workspace", "cache", "var/tmp/yadokari-stock")


def blob(digest):
    return layout / "blobs" / digest.replace(":", "/")


def described(archive, member):
    mode = f"{member.mode & 0o7777:04o} {member.uid}:{member.gid}"
    if member.isdir():
        return f"directory {mode}"
    if member.issym():
        return f"link {member.uid}:{member.gid} -> {member.linkname}"
    if member.isfile():
        content = hashlib.sha256(archive.extractfile(member).read()).hexdigest()
        return f"file {mode} {content}"
    return f"other {mode} {member.type} {member.devmajor}:{member.devminor}"


def read(archive, tree):
    added = set()
    for member in archive:
        path = member.name.removeprefix("./").strip("/")
        parent, _, name = path.rpartition("/")
        if name == ".wh..wh..opq":
            for known in [known for known in tree if known.startswith(parent + "/") and known not in added]:
                del tree[known]
            continue
        gone = name.removeprefix(".wh.") if name.startswith(".wh.") else None
        if gone is not None or not member.isdir():
            at = f"{parent}/{gone}".strip("/") if gone is not None else path
            if tree.pop(at, "").startswith("directory"):
                for known in [known for known in tree if known.startswith(at + "/")]:
                    del tree[known]
        if gone is not None or path in ("", "."):
            continue
        if member.islnk():
            tree[path] = tree[member.linkname.removeprefix("./").strip("/")]
        else:
            tree[path] = described(archive, member)
        added.add(path)


index = json.loads((layout / "index.json").read_text())
manifest = json.loads(blob(index["manifests"][0]["digest"]).read_text())
image = {}
for layer in manifest["layers"]:
    with tarfile.open(blob(layer["digest"])) as archive:
        read(archive, image)
found = {}
with tarfile.open(disk) as archive:
    read(archive, found)


def is_ours(path):
    return path in OWN or any(path == out or path.startswith(out) for out in LEFT_OUT)


faults = []
for path in sorted(set(image) | set(found)):
    if is_ours(path):
        continue
    wanted, seen = image.get(path), found.get(path)
    if wanted == seen or (wanted is None and seen.startswith("directory")):
        continue
    if wanted is None and path in ("bin/sh", "etc/nsswitch.conf"):
        continue
    faults.append(f"{path}: {wanted or 'nothing'} in the image, {seen or 'nothing'} on disk")
for fault in faults[:40]:
    print("   ", fault)
if faults:
    sys.exit(f"{len(faults)} files differ")
print(f"    {len(image)} files of the image are on disk as they are in it, and no others")
