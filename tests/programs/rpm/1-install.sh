rpm() { command rpm --root /mnt/root --dbpath /var/lib/rpm "$@"; }
rpm -i rpms/thing-1.rpm
rpm -qa | sort
rpm -V thing && echo verified
rpm -qf /usr/lib/thing/deep/7
find root -links +1 -type f | sort
