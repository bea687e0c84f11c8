export APT_CONFIG=/mnt/apt.conf DEBIAN_FRONTEND=noninteractive
ln -sfn second repository
apt-get -qq update
apt-get -qq upgrade --with-new-pkgs
apt-cache depends app
apt-get -qq check
apt-mark showauto
ls root/usr/share/*/version-*
