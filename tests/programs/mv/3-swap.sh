# Two directories change their names with each other, each with work under way in it.
exec 3>>linked/3
(
  cd lower
  mv ../linked ../between
  mv ../lower ../linked
  mv ../between ../lower
  echo here >inside
  echo there >../lower/inside
)
echo open >&3
exec 3>&-
mv lower/deep/deeper empty/
mv empty/deeper lower/deep/
cat linked/inside lower/inside lower/3
rm -rf linked/deep
mkdir linked/deep
find lower empty linked | sort
