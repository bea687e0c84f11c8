export APT_CONFIG=/mnt/apt.conf DEBIAN_FRONTEND=noninteractive
apt-get -qq purge app
apt-get -qq autoremove --purge
apt-get -qq install --no-download other
apt-get -qq clean
rm -r root/var/lib/apt/lists
find root | sort
