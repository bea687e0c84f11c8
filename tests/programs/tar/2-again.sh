# Extracting again replaces, keeps or refuses what is there; incremental archives.
tar -xf made.tar -C tree --overwrite
tar -xf made.tar -C tree --keep-old-files 2>/dev/null || echo "status $?"
mkdir -p again/link-was
rm again/link
mv again/link-was again/link
tar -xpf made.tar -C again --recursive-unlink ./link
tar -xpf made.tar -C again --unlink-first ./a/2 ./again
tar -xpf made.tar -C again
tar -C again -df made.tar && echo same
find again -links +1 -type f | sort

rm again/a/pipe again/a/null
tar --sort=name -g snapshot -cf whole.tar again
echo more >>again/a/2
rm again/a/4
mkdir again/new
echo new >again/new/new
tar --sort=name -g snapshot -cf rest.tar again
tar -tf rest.tar
mkdir restored
tar -g /dev/null -xpf whole.tar -C restored
tar -g /dev/null -xpf rest.tar -C restored
diff -r --no-dereference again restored/again 2>&1 && echo same
rm -r snapshot whole.tar rest.tar again tree/a
tar -xpf made.tar -C tree ./a
