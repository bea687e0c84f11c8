. venv/bin/activate
pip() { command pip --disable-pip-version-check --no-input "$@"; }
pip install -q --no-cache-dir --no-index --find-links dists --upgrade made
python -c 'import built, made.deep.new; print(built.TEXT)'
python -c 'import made.gone' 2>/dev/null || echo "status $?"
pip show -f made | sed -n '/Files/,$p' | sha256sum
pip uninstall -q -y made
made 2>/dev/null || echo "status $?"
pip check || echo "status $?"
# It would be compiled in a directory with a random name, which is in what is compiled.
pip install -q --no-cache-dir --no-compile --no-index --target elsewhere dists/made-1.0-py3-none-any.whl
PYTHONPATH=elsewhere python -c 'import built; print(built.TEXT)'
