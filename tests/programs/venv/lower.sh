# A module on the disk, and an environment without pip that an image already has.
mkdir -p code/package
echo 'NAME = "package"' >code/package/__init__.py
cat >code/package/__main__.py <<'PYTHON'
import os, sys
from package import NAME
print(NAME, sys.prefix, sys.prefix != sys.base_prefix, os.path.realpath(sys.executable) == sys.executable)
PYTHON
python3 -m venv --without-pip old
