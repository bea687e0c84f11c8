cd app
npm install ../tool-2.0.0.tgz | sed 's/ in .*//'
node_modules/.bin/other three
npm uninstall leaf | sed 's/ in .*//'
npm ls --all
npm pack --silent --pack-destination ..
npm install --silent --global --prefix /mnt/global ../tool-2.0.0.tgz
/mnt/global/bin/tool four
find /mnt/global -type l | sort
