# A workspace with a build script and a path dependency, and what building it left.
mkdir -p work outside/src
cd work
mkdir -p app/src helper/src
cat >Cargo.toml <<'TOML'
[workspace]
members = ["app", "helper"]
resolver = "2"
[profile.dev]
debug = false
incremental = false
TOML
cat >app/Cargo.toml <<'TOML'
[package]
name = "app"
version = "1.0.0"
edition = "2021"
[dependencies]
helper = { path = "../helper" }
TOML
cat >app/src/main.rs <<'RUST'
fn main() { println!("app, {}", helper::text()) }
#[test]
fn has_a_text() { assert!(helper::text().starts_with("helper")) }
RUST
cat >helper/Cargo.toml <<'TOML'
[package]
name = "helper"
version = "1.0.0"
edition = "2021"
[dependencies]
outside = { path = "../../outside" }
TOML
cat >helper/build.rs <<'RUST'
fn main() {
    println!("cargo:rerun-if-changed=words");
    let words = std::fs::read_to_string("words").unwrap();
    let out = std::path::Path::new(&std::env::var_os("OUT_DIR").unwrap()).join("words.rs");
    std::fs::write(out, format!("pub const WORDS: usize = {};", words.lines().count())).unwrap();
}
RUST
seq 10 >helper/words
cat >helper/src/lib.rs <<'RUST'
include!(concat!(env!("OUT_DIR"), "/words.rs"));
pub fn text() -> String { format!("helper of {WORDS} words and {}", outside::NAME) }
RUST
printf '[package]\nname = "outside"\nversion = "1.0.0"\nedition = "2021"\n' >../outside/Cargo.toml
echo 'pub const NAME: &str = "outside";' >../outside/src/lib.rs
cargo build --offline
