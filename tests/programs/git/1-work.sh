cd repository
git status --porcelain --branch
echo more >>README
rm docs/3
git mv src/deep src/moved
echo new >new
chmod -x run
git status --porcelain
git stash -qu
git status --porcelain
git stash pop -q
git add -A
git commit -qm moved
git checkout -q side
./run
echo side >src/side
git add -A
git commit -qm side
git merge -q -m merged main
git status --porcelain --branch
git worktree add -q --detach ../tree HEAD~1
echo edited >>../tree/README
git -C ../tree status --porcelain
git -C ../tree commit -qam edited
git clone -q . ../clone
git -C ../clone status --porcelain --branch
git log --graph --format='%h %s %d'
git ls-files --stage | sha256sum
git fsck --no-progress
