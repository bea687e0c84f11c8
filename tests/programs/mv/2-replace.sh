# Onto empty directories, onto files, and what is refused.
mv -T lower/deep empty
mkdir lower/deep
echo again >lower/deep/again
mv -T lower empty 2>&1 || echo "status $?"
mv empty lower/1 2>&1 || echo "status $?"
mv lower lower/deep 2>&1 || echo "status $?"
mv -T empty/deeper lower/deep/deeper
mv lower/2 lower/1
mv other/linked lower/deep/deeper/2
mv -n lower/1 lower/deep/again
cp -a lower copy
cp -al lower linked
echo both >>linked/1
rm -r lower
mv copy lower
find . -type f -links +1 | sort
find lower empty linked | sort
