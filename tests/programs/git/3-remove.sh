cd clone
git status --porcelain --branch
git fetch -q
git checkout -q -B main v1
git status --porcelain --branch
git mv src source
mv docs elsewhere
git add -A
git commit -qm renamed
git diff --stat -M HEAD~1 | tail -n 3
git checkout -q HEAD~1
cd ..
git -C repository worktree remove --force ../tree
git -C repository branch -qD main pushed
git -C repository reflog expire --expire=now --all
git -C repository gc -q --prune=now
rm -r mirror.git shared
for directory in repository clone unbundled; do
  git -C "$directory" fsck --no-progress 2>&1
  git -C "$directory" for-each-ref
done
