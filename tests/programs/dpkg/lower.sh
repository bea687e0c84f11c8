# A root with a shell and an empty database, and packages in two versions: `watcher` is
# interested in files of others and in a trigger that `namer` activates.
mkdir -p root/bin root/etc root/usr/share/things root/var/lib/dpkg/{info,updates,triggers} root/tmp
cp "$(command -v busybox)" root/bin/busybox
for applet in sh cat ls rm; do ln -s busybox "root/bin/$applet"; done
touch root/var/lib/dpkg/{status,available}

# The control file is what is read.
package() {
  mkdir -p made/DEBIAN
  { cat; printf 'Architecture: all\nMaintainer: n <n@example.com>\nDescription: made\n'; } >made/DEBIAN/control
  chmod -R u=rwX,go=rX made/DEBIAN
  dpkg-deb --build made "debs/$1.deb"
  rm -r made
}
mkdir debs

mkdir -p made/DEBIAN made/usr/share/doc/watcher made/var/cache
printf 'interest-noawait /usr/share/things\ninterest names\n' >made/DEBIAN/triggers
cat >made/DEBIAN/postinst <<'POSTINST'
#!/bin/sh
echo "watcher: $*"
ls /usr/share/things >/var/cache/things.new && cat /var/cache/things.new >/var/cache/things
rm /var/cache/things.new
POSTINST
chmod 755 made/DEBIAN/postinst
package watcher-1 <<'CONTROL'
Package: watcher
Version: 1
CONTROL

for version in 1 2; do
  mkdir -p made/DEBIAN made/etc/thing.d made/usr/share/things/deep made/usr/bin made/usr/share/doc/thing
  printf '/etc/thing.conf\n/etc/thing.d/kept\n' >made/DEBIAN/conffiles
  echo "thing $version" >made/etc/thing.conf
  echo kept >made/etc/thing.d/kept
  for n in $(seq 120); do echo "$version $n" >"made/usr/share/things/deep/$n"; done
  echo "$version" >made/usr/share/things/thing
  ln made/usr/share/things/thing made/usr/share/things/same
  ln -s deep/3 made/usr/share/things/link
  printf '#!/bin/sh\necho thing %s\n' "$version" >made/usr/bin/thing
  chmod 4755 made/usr/bin/thing
  chown 5:60 made/usr/share/things/deep
  chmod 2775 made/usr/share/things/deep
  if [ "$version" = 1 ]; then
    echo gone >made/usr/share/things/gone
    echo directory >made/usr/share/doc/thing/was-file
  else
    mkdir made/usr/share/doc/thing/new
    ln made/usr/share/things/deep/5 made/usr/share/doc/thing/new/five
  fi
  printf '#!/bin/sh\necho "thing %s postrm: $*"\n' "$version" >made/DEBIAN/postrm
  chmod 755 made/DEBIAN/postrm
  printf 'Package: thing\nVersion: %s\n' "$version" | package "thing-$version"
done

mkdir -p made/DEBIAN made/usr/share/doc/namer
echo 'activate names' >made/DEBIAN/triggers
printf 'Package: namer\nVersion: 1\n' | package namer-1
# As if an image had it already.
dpkg --root=/mnt/root --log=/dev/null -i debs/watcher-1.deb
