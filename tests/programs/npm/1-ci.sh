cd app
npm ci | sed 's/ in .*//'
npm ls --all
npx tool one two
find node_modules -name 'made-by-*' -o -type l | sort
[ ! -e node_modules/stale ]
