# A lower directory is moved, worked on under its other name, and moved back.
mv lower moved
echo edited >>moved/2
echo new >moved/deep/new
rm moved/deep/3
mv moved/deep/deeper/1 moved/1st
chmod 640 moved/deep/2
mv moved lower
find lower | sort
cat lower/2

# Into a directory of its own, and out of it again.
mkdir made
mv lower made/
sed -i s/7/seven/ made/lower/deep/deeper/2
mv made/lower/deep made/
echo through >>made/deep/link
cat made/1
mv made/1 made/lower/3
mv made/deep made/lower/
mv made/lower .
rmdir made
cat lower/1 other/linked
