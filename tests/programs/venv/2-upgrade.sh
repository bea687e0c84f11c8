# In place, emptied, moved.
python3 -m venv --without-pip --upgrade old
old/bin/python -m package
touch linked/mine
python3 -m venv --without-pip --clear linked
[ ! -e linked/mine ]
linked/bin/python -m package 2>&1 || echo "status $?"
mv copied moved
moved/bin/python -m package
moved/bin/python -c 'import mmap, os
with open("/mnt/mapped", "w+b") as file:
    os.truncate(file.fileno(), 9000)
    with mmap.mmap(file.fileno(), 0) as mapped:
        mapped[5000:5005] = b"hello"
print(open("/mnt/mapped", "rb").read().strip(bytes(1)))'
rm -r old
