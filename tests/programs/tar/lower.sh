# A tree, and the archive of one like it with links, holes, attributes and owners.
mkdir -p tree/a/b tree/empty
for n in 1 2 3 4; do seq "$n" 2000 >"tree/a/$n"; done
cp -a tree made
ln made/a/1 made/a/b/first
ln made/a/1 made/again
ln -s a/b/first made/link
mkfifo made/a/pipe
mknod made/a/null c 1 3
chmod 4755 made/a/2
chown 7:8 made/a/3 made/a/b
chmod 3770 made/a/b
touch -hd @987654321.5 made/a/4 made/link made/empty
truncate -s 8M made/holes
printf middle | dd of=made/holes bs=1 seek=5000000 conv=notrunc status=none
setfattr -n user.colour -v red made/a/4
setcap cap_net_raw+ep made/a/1
name=$(printf 'n%.0s' $(seq 200))
mkdir -p "made/$name"
echo long >"made/$name/$name"
tar --xattrs --sparse -C made -cf made.tar .
rm -r made
ln tree/a/1 tree/a/b/first
