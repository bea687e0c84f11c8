export APT_CONFIG=/mnt/apt.conf DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install app
apt-cache policy app
apt-mark showauto
ls root/var/cache/apt/archives
cat root/usr/share/library/version-1
