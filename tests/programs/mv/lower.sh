mkdir -p lower/deep/deeper other empty
for n in 1 2 3; do
  seq "$n" >"lower/$n"
  seq "$n" 90 >"lower/deep/$n"
  seq "$n" 9000 >"lower/deep/deeper/$n"
done
ln lower/1 other/linked
ln -s ../1 lower/deep/link
mkfifo lower/deep/pipe
chmod 2751 lower/deep
chown 3:4 lower/deep/1
