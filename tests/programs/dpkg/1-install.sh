dpkg() { command dpkg --root=/mnt/root --log=/dev/null "$@"; }
dpkg -i debs/thing-1.deb debs/namer-1.deb
cat root/var/cache/things
dpkg-query --root=/mnt/root -W -f '${Package} ${Version} ${Status}\n'
dpkg --verify && echo verified
dpkg -S /usr/share/things/deep/7
find root -links +1 -type f | sort
