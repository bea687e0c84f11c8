"""Measures workloads on roots of several kinds; see scripts/bench-overlay.

Every cell is user plus system time of the workload and of the server (if there is one),
and the wall time. Ratios are pair by pair within a round, and their median is told.
"""

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

FILES = 20_000
LOWER = 10_000


def sh(command, **more):
    subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL, **more)


def cpu_of(pid):
    """Seconds of processor time that a process has used so far."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Native:
    """The base unpacked into a directory; made anew by copying."""

    name = "native"

    def __init__(self, bench):
        self.bench = bench

    def start(self, place):
        self.root = f"{place}/root"
        sh(f"cp -a '{self.bench.unpacked}' '{self.root}'")
        return None

    def stop(self):
        pass


class Overlayfs:
    """The kernel's overlayfs."""

    name = "overlayfs"

    def __init__(self, bench):
        self.bench = bench

    def start(self, place):
        self.root = f"{place}/root"
        for directory in ("root", "upper", "work"):
            os.mkdir(f"{place}/{directory}")
        sh(
            f"mount -t overlay overlay -o lowerdir='{self.bench.unpacked}',"
            f"upperdir='{place}/upper',workdir='{place}/work' '{self.root}'"
        )
        return None

    def stop(self):
        sh(f"umount '{self.root}'")


class FuseOverlayfs:
    """Debian's fuse-overlayfs."""

    name = "fuse-overlayfs"

    def __init__(self, bench):
        self.bench = bench

    def start(self, place):
        self.root = f"{place}/root"
        for directory in ("root", "upper", "work"):
            os.mkdir(f"{place}/{directory}")
        self.server = subprocess.Popen(
            [
                "fuse-overlayfs", "-f", "-o",
                f"lowerdir={self.bench.unpacked},upperdir={place}/upper,"
                f"workdir={place}/work,allow_other",
                self.root,
            ]
        )
        while not os.path.ismount(self.root):
            if self.server.poll() is not None:
                raise RuntimeError("fuse-overlayfs ended")
            time.sleep(0.01)
        return self.server.pid

    def stop(self):
        sh(f"umount '{self.root}'")
        self.server.wait()


class Ours:
    """Our overlay, over the base's tar: nothing is unpacked."""

    def __init__(self, bench, name="yadokari", environment=None):
        self.bench = bench
        self.name = name
        self.environment = environment or {}

    def start(self, place):
        self.root = f"{place}/root"
        os.mkdir(self.root)
        self.server = subprocess.Popen(
            [self.bench.server, self.bench.tar, place, self.root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self.environment},
        )
        if self.server.stdout.readline().strip() != b"ready":
            raise RuntimeError("the overlay did not start")
        return self.server.pid

    def stop(self):
        self.server.stdin.close()
        if self.server.wait() != 0:
            raise RuntimeError("the overlay failed")


def mode(name):
    """What makes the server work in that way."""
    if name == "passthrough":
        return {"YADOKARI_FUSE_TRANSPORT": "device", "YADOKARI_FUSE_PASSTHROUGH": "1"}
    return {"YADOKARI_FUSE_TRANSPORT": name}


# Name, preparation outside the clock, what is measured; {root} and {made} are filled in.
WORKLOADS = [
    ("tar x of 20,000 small files", "", "tar -xf {made}/files.tar -C {root}/srv"),
    ("find and stat, cold", "", "find {root} -printf '%s %m %p\\n'"),
    ("find and stat, warm", "find {root} -printf '%s\\n'", "find {root} -printf '%s %m %p\\n'"),
    ("ls -lR, warm", "ls -lR {root}", "ls -lR {root}"),
    ("cat of every file, cold", "", "find {root}/usr {root}/many -type f -exec cat {{}} +"),
    (
        "cat of every file, warm",
        "find {root}/usr {root}/many -type f -exec cat {{}} +",
        "find {root}/usr {root}/many -type f -exec cat {{}} +",
    ),
    ("write 512 MiB", "", "dd if={made}/large of={root}/large bs=1M"),
    (
        "read 512 MiB again, cold",
        "cp {made}/large {root}/large; sync -f {root}; echo 1 > /proc/sys/vm/drop_caches",
        "cat {root}/large",
    ),
    ("rm -r of 10,000 lower files", "", "rm -r {root}/many"),
    (
        "compile 60 C files",
        "cp -r {made}/c {root}/c; chroot {root} make -C /c -j2; chroot {root} make -C /c clean",
        "chroot {root} make -C /c -j2",
    ),
    ("python venv with pip", "", "python3 -m venv {root}/srv/venv"),
    (
        "dpkg, a dozen packages",
        "cp {made}/debs/*.deb {root}/srv/",
        "chroot {root} sh -c 'dpkg --unpack --force-all /srv/*.deb'",
    ),
]


class Bench:
    def __init__(self, arguments, work):
        self.server = arguments.server
        self.work = work
        self.made = f"{work}/made"
        self.unpacked = f"{work}/unpacked"
        self.tar = f"{work}/base.tar"
        os.mkdir(self.made)
        os.mkdir(self.unpacked)
        rng = random.Random(1)
        print("bench-overlay: preparing", file=sys.stderr)
        sh(f"tar -xf '{arguments.base}' -C '{self.unpacked}'")
        for number in range(LOWER):
            directory = f"{self.unpacked}/many/d{number // 100}"
            os.makedirs(directory, exist_ok=True)
            with open(f"{directory}/f{number}", "wb") as out:
                out.write(rng.randbytes(rng.randint(100, 8000)))
        sh(f"tar -cf '{self.tar}' -C '{self.unpacked}' .")
        for number in range(FILES):
            directory = f"{work}/files/d{number // 100}"
            os.makedirs(directory, exist_ok=True)
            with open(f"{directory}/f{number}", "wb") as out:
                out.write(rng.randbytes(rng.randint(100, 8000)))
        sh(f"tar -cf '{self.made}/files.tar' -C '{work}/files' .; rm -r '{work}/files'")
        sh(f"head -c 536870912 /dev/urandom > '{self.made}/large'")
        os.mkdir(f"{self.made}/c")
        for number in range(60):
            with open(f"{self.made}/c/f{number}.c", "w", encoding="ascii") as out:
                out.write("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n")
                for function in range(40):
                    out.write(
                        f"int f{number}_{function}(int n) {{ char b[64]; snprintf(b, 64, \"%d\", n);"
                        f" return (int)strlen(b) + atoi(b) * {function}; }}\n"
                    )
        with open(f"{self.made}/c/Makefile", "w", encoding="ascii") as out:
            out.write("O=$(patsubst %.c,%.o,$(wildcard *.c))\nlib.a: $O\n\tar rc $@ $O\n")
            out.write("clean:\n\trm -f *.o lib.a\n")
        os.mkdir(f"{self.made}/debs")
        names = "bzip2 file less nano vim-tiny patch perl-base sed tar wget gzip coreutils"
        sh(f"cd '{self.made}/debs' && chmod 755 . && apt-get -qq download {names}")

    def run(self, kind, workload):
        """Processor time and wall time, in seconds."""
        _, before, command = workload
        place = tempfile.mkdtemp(dir=self.work)
        server = kind.start(place)
        names = {"root": kind.root, "made": self.made}
        try:
            sh("sync")
            sh("echo 3 > /proc/sys/vm/drop_caches")
            if before:
                sh(before.format(**names))
            else:
                # Programs and inputs are warm, the root is cold.
                sh(f"cat {self.made}/large {self.made}/files.tar; tar --version; python3 -V")
            server_before = cpu_of(server) if server else 0
            children = resource.getrusage(resource.RUSAGE_CHILDREN)
            started = time.monotonic()
            sh(command.format(**names), stderr=subprocess.DEVNULL)
            wall = time.monotonic() - started
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
            if server:
                cpu += cpu_of(server) - server_before
            return cpu, wall
        finally:
            kind.stop()
            shutil.rmtree(place, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("-n", type=int, default=3, dest="rounds")
    parser.add_argument("--only", default="")
    parser.add_argument("--transports", default="", help="device,ring,fuser,passthrough: ours once for each")
    parser.add_argument("--ours", action="store_true", help="ours alone, beside each other")
    arguments = parser.parse_args()
    wanted = [word for word in arguments.only.split(",") if word]
    work = tempfile.mkdtemp(prefix="yadokari-bench-", dir=os.environ.get("TMPDIR", "/var/tmp"))
    try:
        bench = Bench(arguments, work)
        kinds = [Native(bench), Overlayfs(bench), FuseOverlayfs(bench), Ours(bench)]
        if arguments.transports:
            kinds[-1:] = [
                Ours(bench, f"yadokari ({name})", mode(name))
                for name in arguments.transports.split(",")
            ]
        ours = [kind.name for kind in kinds[3:]]
        if arguments.ours:
            kinds[:3] = []
        peers = [kind.name for kind in kinds if kind.name not in ours]
        # Without peers, each transport is compared with the one that is named last.
        if not peers:
            peers = [ours.pop()]
        print(f"kernel {os.uname().release}, {os.cpu_count()} processors, "
              f"load {os.getloadavg()[0]:.1f}, {arguments.rounds} rounds; "
              "seconds of processor time (wall), medians; ratios of processor time\n")
        heads = [kind.name for kind in kinds]
        for name in ours:
            heads += [f"{name} / {peer}" for peer in peers]
        print("| workload | " + " | ".join(heads) + " |")
        print("| --- |" + " --- |" * len(heads))
        for workload in WORKLOADS:
            if wanted and not any(word in workload[0] for word in wanted):
                continue
            seen = {kind.name: [] for kind in kinds}
            for _ in range(arguments.rounds):
                for kind in kinds:
                    seen[kind.name].append(bench.run(kind, workload))
            cells = []
            for kind in kinds:
                cpu = statistics.median(cpu for cpu, _ in seen[kind.name])
                wall = statistics.median(wall for _, wall in seen[kind.name])
                cells.append(f"{cpu:.2f} ({wall:.2f})")
            for name in ours:
                for peer in peers:
                    pairs = zip(seen[name], seen[peer])
                    ratio = statistics.median(mine[0] / max(other[0], 0.005) for mine, other in pairs)
                    cells.append(f"{ratio:.2f}")
            print(f"| {workload[0]} | " + " | ".join(cells) + " |", flush=True)
    finally:
        with open("/proc/self/mounts", encoding="utf-8") as mounts:
            left = [line.split()[1] for line in mounts if f" {work}" in line]
        for path in left:
            subprocess.run(["umount", "--lazy", path], check=False)
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
