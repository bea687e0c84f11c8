python3 -m venv venv
. venv/bin/activate
pip() { command pip --disable-pip-version-check --no-input "$@"; }
pip install -q --no-cache-dir --no-index --find-links dists --no-build-isolation made==1.0 built
pip list --format=freeze | grep -v -e '^pip=' -e '^setuptools='
pip check
python -c 'import built, made.deep.part7; print(built.TEXT, made.deep.part7.PART)'
made
