rpm() { command rpm --root /mnt/root --dbpath /var/lib/rpm "$@"; }
rpm -U --oldpackage rpms/thing-1.rpm
rpm -e thing
rpm -qa | sort
rpm -e watcher
find root | sort
