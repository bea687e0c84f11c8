cd work
build() { cargo build --offline --locked -v "$@" 2>&1 | grep -oE '^ *(Fresh|Dirty|Compiling) [a-z]+'; }
build
echo 'pub const NAME: &str = "another";' >../outside/src/lib.rs
build
target/debug/app
cargo test --offline --locked -q 2>&1 | grep -E '^test result: ok. 1' | cut -d ';' -f 1
