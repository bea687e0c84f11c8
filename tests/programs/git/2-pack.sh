# Rewrites, repacks, and clones that share files with what is there.
cd clone
echo mine >mine
git add mine
git commit -qm mine
git push -q origin HEAD:refs/heads/pushed
cd ../repository
git merge -q --no-edit pushed 2>&1
git rebase -q v1 2>&1
git status --porcelain --branch
git gc -q --prune=now
git count-objects -v | grep -v size
git clone -q --mirror . ../mirror.git
git clone -q --shared . ../shared
git bundle create -q ../all.bundle --all
git clone -q ../all.bundle ../unbundled
git -C ../unbundled repack -adq
git -C ../unbundled status --porcelain --branch
git reset -q --hard v1
echo junk >src/junk
git clean -fdq
git status --porcelain --branch
git worktree list | cut -d ' ' -f 1
git fsck --no-progress 2>&1
