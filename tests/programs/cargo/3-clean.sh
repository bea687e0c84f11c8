cd work
cargo clean --offline -q -p helper
ls target/debug/deps | sed 's/-[0-9a-f]\{16\}//' | sort
mv helper assistant
sed -i s,helper,assistant, Cargo.toml
sed -i s,../helper,../assistant, app/Cargo.toml
cargo run --offline -q
cargo clean --offline -q
ls
