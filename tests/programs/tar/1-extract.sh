# Over a tree that is there, and beside it.
tar --full-time --numeric-owner -tvf made.tar
tar --xattrs --xattrs-include='*' -xpf made.tar -C tree
getcap -r tree | sort
find tree -print0 | sort -z | xargs -0 getfattr -h -d -m '^user'
find tree -links +1 -type f | sort
stat -c %s tree/holes
[ "$(stat -c %b tree/holes)" -lt 1000 ] && echo sparse
tar -C tree -df made.tar && echo same

# Archives of it say the same everywhere.
create() { tar --sort=name --numeric-owner --xattrs --pax-option=delete=atime,delete=ctime "$@"; }
create -C tree --mtime=@1 -cf - . | sha256sum
# Where a disk sees holes depends on what is written back already.
for how in seek raw; do
  create -C tree --sparse --hole-detection="$how" -cf "$how.tar" holes
  [ "$(stat -c %s "$how.tar")" -lt 100000 ] && tar -xOf "$how.tar" | sha256sum
  rm "$how.tar"
done
create -C tree -czf again.tar.gz --exclude=./holes .
mkdir again
tar -xpzf again.tar.gz --xattrs --xattrs-include='*' -C again
rm again.tar.gz
touch -d @1 again
