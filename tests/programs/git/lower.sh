# A repository with a pack, loose objects, a branch and a tag.
cat >home/.gitconfig <<'CONFIG'
[user]
	name = n
	email = n@example.com
[init]
	defaultBranch = main
[gc]
	auto = 0
[maintenance]
	auto = false
[pack]
	threads = 1
CONFIG
git init -q repository
cd repository
mkdir -p src/deep docs
for n in $(seq 40); do seq "$n" $((n * 30)) >"src/deep/$n"; done
echo readme >README
ln -s README link
printf '#!/bin/sh\necho ran\n' >run
chmod +x run
git add -A
git commit -qm one
git gc -q
for n in 2 3 4; do
  seq "$n" 500 >"docs/$n"
  git add -A
  git commit -qm "$n"
done
git tag -am first v1
git branch side HEAD~2
