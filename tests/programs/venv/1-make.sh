# With links to the interpreter, and with a copy of it.
python3 -m venv --without-pip linked
python3 -m venv --without-pip --copies copied
for venv in old linked copied; do
  PYTHONPATH=code "$venv/bin/python" -m package
  site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo /mnt/code >"$site/code.pth"
  "$venv/bin/python" -m package
  "$venv/bin/python" -m compileall -q code "$site"
  (. "$venv/bin/activate" && command -v python && python -c 'import package; print(package.__file__, package.__cached__)')
done
