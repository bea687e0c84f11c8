dpkg() { command dpkg --root=/mnt/root --log=/dev/null "$@"; }
dpkg -r thing 2>&1
dpkg-query --root=/mnt/root -W -f '${Package} ${Version} ${Status}\n'
ls root/etc
dpkg --force-confnew -i debs/thing-1.deb
dpkg --purge thing namer 2>&1
dpkg --triggers-only -a
dpkg --audit
cat root/var/cache/things
find root | sort
