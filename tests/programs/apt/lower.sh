# A root with a shell and an empty database, and a repository in two states: `app` depends on
# `library`, and its second version on `other`.
mkdir -p root/bin root/tmp root/etc/apt/apt.conf.d root/etc/apt/preferences.d
mkdir -p root/var/lib/dpkg/{info,updates,triggers} root/var/lib/apt/lists/partial
mkdir -p root/var/cache/apt/archives/partial root/var/log/apt root/usr/share/old
cp "$(command -v busybox)" root/bin/busybox
for applet in sh cat ls rm; do ln -s busybox "root/bin/$applet"; done
touch root/var/lib/dpkg/{status,available}
cat >apt.conf <<'CONF'
Dir "/mnt/root";
Dir::State::status "/mnt/root/var/lib/dpkg/status";
Dir::Bin::dpkg "/usr/bin/dpkg";
Dir::Bin::methods "/usr/lib/apt/methods";
DPkg::Options { "--root=/mnt/root"; "--log=/dev/null"; };
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "root";
APT::Get::Assume-Yes "true";
CONF

# Name, version, and the packages that it needs.
package() {
  mkdir -p made/DEBIAN "made/usr/share/$1/deep"
  printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: n <n@example.com>\n' "$1" "$2" \
    >made/DEBIAN/control
  [ -z "$3" ] || echo "Depends: $3" >>made/DEBIAN/control
  echo 'Description: made' >>made/DEBIAN/control
  for n in $(seq 60); do seq "$n" $((n * 10)) >"made/usr/share/$1/deep/$n"; done
  echo "$2" >"made/usr/share/$1/version-$2"
  printf '#!/bin/sh\necho "%s %s: $*"\n' "$1" "$2" >made/DEBIAN/postinst
  chmod 755 made/DEBIAN/postinst
  dpkg-deb --root-owner-group --build made "$repository/$1_$2_all.deb"
  rm -r made
}
for repository in first second; do
  mkdir "$repository"
  if [ "$repository" = first ]; then
    package library 1 ''
    package app 1 library
  else
    package library 2 ''
    package other 1 ''
    package app 2 'library (>= 2), other'
  fi
  (
    cd "$repository"
    for deb in *.deb; do
      dpkg-deb --field "$deb"
      printf 'Filename: ./%s\nSize: %s\n' "$deb" "$(stat -c %s "$deb")"
      printf 'SHA256: %s\n\n' "$(sha256sum "$deb" | cut -d ' ' -f 1)"
    done >Packages
    printf 'Date: Sun, 09 Sep 2001 01:46:40 UTC\nSHA256:\n %s %s Packages\n' \
      "$(sha256sum Packages | cut -d ' ' -f 1)" "$(stat -c %s Packages)" >Release
  )
done
ln -s first repository
echo 'deb [trusted=yes] copy:/mnt/repository ./' >root/etc/apt/sources.list
