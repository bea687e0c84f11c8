dpkg() { command dpkg --root=/mnt/root --log=/dev/null "$@"; }
echo mine >root/etc/thing.conf
echo mine >root/usr/share/things/mine
dpkg-divert --root /mnt/root --local --rename --add /usr/share/things/thing
dpkg-statoverride --root /mnt/root --update --add games games 0710 /usr/share/things/deep
dpkg --force-confold -i debs/thing-2.deb
cat root/var/cache/things root/etc/thing.conf
[ ! -e root/usr/share/things/gone ]
dpkg --verify || echo "status $?"
stat -c '%n %a %u:%g' root/usr/share/things/deep root/usr/bin/thing
find root -links +1 -type f | sort
