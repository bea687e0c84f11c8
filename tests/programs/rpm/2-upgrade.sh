rpm() { command rpm --root /mnt/root --dbpath /var/lib/rpm "$@"; }
echo mine >root/etc/thing.conf
rpm -U rpms/thing-2.rpm
rpm -qa | sort
rpm -V thing || echo "status $?"
ls root/etc root/usr/share/things
rpm -q --filetriggers watcher | grep -c things
rpm --rebuilddb
rpm -ql thing | wc -l
