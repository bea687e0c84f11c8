# What is in the layer below is fresh; then a word more for the build script.
cd work
build() { cargo build --offline --locked -v 2>&1 | grep -oE '^ *(Fresh|Dirty|Compiling) [a-z]+'; }
build
target/debug/app
seq 11 >helper/words
build
target/debug/app
find target -type f -links +1 | sed 's/-[0-9a-f]\{16\}//' | sort
