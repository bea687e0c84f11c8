# A wheel in two versions, and the source of a package that is built where it is installed
# by a backend of its own, so that nothing but the standard library is needed.
mkdir -p dists source/backend source/built
cat >source/backend/backend.py <<'PYTHON'
import os, zipfile

def write_wheel(to, name, version, files, *, requires=(), scripts=""):
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {package}\n" for package in requires)
    tags = "Wheel-Version: 1.0\nGenerator: backend\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = dict(files) | {f"{info}/METADATA": metadata, f"{info}/WHEEL": tags}
    if scripts:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}\n"
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(to, wheel), "w") as archive:
        for path, text in [*files.items(), (f"{info}/RECORD", record)]:
            archive.writestr(zipfile.ZipInfo(path), text)
    return wheel

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    files = {"built/__init__.py": open("built/__init__.py").read()}
    return write_wheel(wheel_directory, "built", "1.0", files, requires=["made>=1"])
PYTHON
cat >source/pyproject.toml <<'TOML'
[build-system]
requires = []
build-backend = "backend"
backend-path = ["backend"]
TOML
echo 'import made; TEXT = "built upon " + made.TEXT' >source/built/__init__.py
printf 'Metadata-Version: 2.1\nName: built\nVersion: 1.0\n' >source/PKG-INFO
tar --sort=name --transform 's,^source,built-1.0,' -czf dists/built-1.0.tar.gz source
PYTHONPATH=source/backend python3 - <<'PYTHON'
from backend import write_wheel
deep = {f"made/deep/part{number}.py": f"PART = {number}\n" for number in range(100)}
command = "def main():\n    print('made, by its command')\n"
for version, more in [("1.0", {"made/gone.py": ""}), ("2.0", {"made/deep/new.py": ""})]:
    files = {"made/__init__.py": f"TEXT = 'made {version}'\n", "made/command.py": command}
    write_wheel("dists", "made", version, files | deep | more, scripts="made = made.command:main")
PYTHON
rm -r source
